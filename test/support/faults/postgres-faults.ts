import { setTimeout as sleep } from 'node:timers/promises';
import { numberOf, PENDING_BATCHES, until } from './polling.ts';
import type { Cut } from './postgres-proxy.ts';
import { FaultError } from './protocol.ts';
import type { World } from './world.ts';

/**
 * How long a fault waits for traffic that it can affect, in milliseconds. A poll to which SQS never responds blocks the
 * loader's only poller for 35 seconds.
 */
const LONGEST_WAIT_MS = 90_000;

/** Stops Postgres like `pg_ctl -m immediate`, while batches are pending. */
export async function stopImmediately(world: World): Promise<void> {
  const kind = 'immediate shutdown of Postgres';
  await world.traffic.send(120);
  await untilPending(world);
  await world.killPostgres('SIGQUIT');
  world.hit(kind);
  await world.recovery.measure(kind);
}

/** Calls `pg_terminate_backend` for every connection of loader or worker. */
export async function terminate(world: World, who: 'loader' | 'worker'): Promise<void> {
  const kind = `pg_terminate_backend of the ${who}`;
  await world.traffic.send(120);
  await untilPending(world);
  const name = who === 'loader' ? 'masked-logins load' : 'masked-logins worker';
  let ended = 0;
  await until(async () => {
    ended = await numberOf(
      world.superuser,
      `select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = '${name}'`,
    );
    return ended > 0;
  });
  if (ended === 0) throw new FaultError(`the ${who} had no connections to Postgres`);
  world.hit(kind);
  await world.recovery.measure(kind);
}

/**
 * A trigger raises the server's error for a full disk (SQLSTATE 53100) in a few statements. A sequence counts the
 * errors, because sequences are not rolled back.
 */
export async function fillDisk(world: World, table: 'staging.batches' | 'public.user_logins'): Promise<void> {
  const kind = `disk full (SQLSTATE 53100) on insert into ${table}`;
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
    'commit:before': 'connection cut before the server receives COMMIT',
    'commit:after': 'connection cut before the loader receives the reply to COMMIT',
    'job:after': 'connection cut before the worker receives a job',
    'mask:after': 'connection cut before the worker receives the result of masking',
  }[at]; // prettier-ignore
  const done = world.postgres.cutAt(at);
  await world.traffic.send(60);
  if (!(await Promise.race([done.then(() => true), sleep(LONGEST_WAIT_MS, false)])))
    throw new FaultError(`no connection reached ${at}`);
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

export async function slow(world: World, what: 'latency' | 'bandwidth'): Promise<void> {
  const { postgres } = world;
  const before = postgres.slowed;
  if (what === 'latency') postgres.latencyMs = world.random.integer(20, 80);
  else postgres.pieceBytes = 512;
  await world.traffic.send(60);
  await sleep(1_500);
  postgres.latencyMs = 0;
  postgres.pieceBytes = 0;
  if (postgres.slowed === before) throw new FaultError('no data passed while the network was slow');
  world.hit(what === 'latency' ? 'latency to Postgres' : 'low bandwidth to Postgres');
}

/** No data passes for some seconds. Then all of it passes, or all connections are reset. */
export async function stall(world: World): Promise<void> {
  await world.traffic.send(60);
  // If this is the first fault of a schedule, the processes have not connected yet.
  if (!(await until(() => world.postgres.connections > 0))) {
    throw new FaultError('there were no connections to stall');
  }
  const end = world.postgres.stall();
  await sleep(world.random.integer(2_000, 5_000));
  if (world.random.chance(0.5)) world.postgres.reset();
  end();
  world.hit('stalled network to Postgres');
  await world.recovery.measure('stalled network to Postgres');
}

/** Waits until a batch is pending, or for three seconds: a batch may be pending too briefly to be seen. */
async function untilPending({ superuser }: World): Promise<void> {
  await until(async () => (await numberOf(superuser, PENDING_BATCHES)) > 0, 3_000, 10);
}

/** Retries an action for 20 seconds, because the server may be restarting. */
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
