import { setTimeout as sleep } from 'node:timers/promises';
import { numberOf, OPEN_BATCHES, until } from './asking.ts';
import type { Cut } from './postgres-proxy.ts';
import { FaultError } from './protocol.ts';
import type { World } from './world.ts';

/**
 * How long a fault waits for the traffic that it is to strike. A poll that SQS never answers holds the loader's only
 * poller for 35 seconds.
 */
const LONGEST_WAIT_MS = 90_000;

/** Postgres stopped as by `pg_ctl -m immediate`, while batches are pending. */
export async function stopImmediately(world: World): Promise<void> {
  const kind = 'Postgres stopped immediate';
  await world.traffic.send(120);
  await someStaged(world);
  await world.killPostgres('SIGQUIT');
  world.hit(kind);
  await world.recovery.measure(kind);
}

/** `pg_terminate_backend` of every connection of loader or worker. */
export async function terminate(world: World, who: 'loader' | 'worker'): Promise<void> {
  const kind = `pg_terminate_backend of the ${who}`;
  await world.traffic.send(120);
  await someStaged(world);
  const name = who === 'loader' ? 'masked-logins load' : 'masked-logins worker';
  let ended = 0;
  await until(async () => {
    ended = await numberOf(
      world.superuser,
      `select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = '${name}'`,
    );
    return ended > 0;
  });
  if (ended === 0) throw new FaultError(`the ${who} had no backends`);
  world.hit(kind);
  await world.recovery.measure(kind);
}

/**
 * The server says that its disk is full (SQLSTATE 53100), by a trigger, for a few statements: the error is real to
 * everybody behind it, the disk is not. A sequence counts the refusals, because it does not roll back.
 */
export async function fillDisk(world: World, table: 'staging.batches' | 'public.user_logins'): Promise<void> {
  const kind = `53100 (disk full) from ${table}`;
  const { superuser } = world;
  await retried(() =>
    superuser.query(`
      create schema if not exists faults;
      create sequence if not exists faults.refusals;
      create or replace function faults.disk_full() returns trigger
      language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
      begin
        perform nextval('faults.refusals');
        raise exception using errcode = '53100', message = 'could not extend file: No space left on device';
      end $$;
      select setval('faults.refusals', 1, false);
      create or replace trigger disk_full before insert on ${table}
      for each statement execute function faults.disk_full()`),
  );
  await world.traffic.send(60);
  const refusals = () =>
    numberOf(superuser, 'select case when is_called then last_value else 0 end from faults.refusals');
  await until(async () => (await refusals()) >= 2, LONGEST_WAIT_MS);
  const count = await refusals();
  await retried(() => superuser.query(`drop trigger disk_full on ${table}`));
  if (count === 0) throw new FaultError('nothing was written while the disk was full');
  world.hit(kind, count);
  await world.recovery.measure(kind);
}

export async function cut(world: World, at: Cut): Promise<void> {
  const kind = {
    'commit:before': 'connection cut at the loader\'s COMMIT, before the server has it',
    'commit:after': 'connection cut at the loader\'s COMMIT, the answer lost',
    'job:after': 'connection cut at the worker\'s taking of a job, the answer lost',
    'mask:after': 'connection cut at the worker\'s masking, the answer lost',
  }[at]; // prettier-ignore
  const done = world.postgres.cutAt(at);
  await world.traffic.send(60);
  if (!(await Promise.race([done.then(() => true), sleep(LONGEST_WAIT_MS, false)])))
    throw new FaultError(`nobody came to ${at}`);
  world.hit(kind);
  await world.recovery.measure(kind);
}

export async function reset(world: World): Promise<void> {
  await world.traffic.send(60);
  await until(() => world.postgres.connections > 0);
  const broken = world.postgres.reset();
  if (broken === 0) throw new FaultError('there were no connections to reset');
  world.hit('connections to Postgres reset');
  await world.recovery.measure('connections to Postgres reset');
}

export async function slow(world: World, way: 'latency' | 'drip'): Promise<void> {
  const { postgres } = world;
  const before = postgres.slowed;
  if (way === 'latency') postgres.latencyMs = world.random.integer(20, 80);
  else postgres.dripBytes = 512;
  await world.traffic.send(60);
  await sleep(1_500);
  postgres.latencyMs = 0;
  postgres.dripBytes = 0;
  if (postgres.slowed === before) throw new FaultError('nothing passed while it was slow');
  world.hit(way === 'latency' ? 'latency to Postgres' : 'slow drip to Postgres');
}

/** Nothing passes for some seconds; then everything does, or all connections are found dead. */
export async function swallow(world: World): Promise<void> {
  await world.traffic.send(60);
  // The first fault of a schedule comes before the processes have connected.
  if (!(await until(() => world.postgres.connections > 0))) {
    throw new FaultError('there were no connections to swallow');
  }
  const end = world.postgres.swallow();
  await sleep(world.random.integer(2_000, 5_000));
  if (world.random.chance(0.5)) world.postgres.reset();
  end();
  world.hit('black hole before Postgres');
  await world.recovery.measure('black hole before Postgres');
}

/** Until a batch is pending, or the moment has passed: a look cannot hold it. */
async function someStaged({ superuser }: World): Promise<void> {
  await until(async () => (await numberOf(superuser, OPEN_BATCHES)) > 0, 3_000, 10);
}

/** Once more where the server was in the middle of a restart. */
export async function retried(action: () => Promise<unknown>): Promise<void> {
  let failure: unknown;
  const isDone = await until(async () => {
    failure = await action().then(
      () => undefined,
      (error: unknown) => error,
    );
    return failure === undefined;
  }, 20_000);
  if (!isDone) throw failure;
}
