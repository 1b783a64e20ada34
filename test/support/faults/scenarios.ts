import { setTimeout as sleep } from 'node:timers/promises';
import { MASKED_ROWS, numberOf, PENDING_BATCHES, until } from './polling.ts';
import { retried } from './postgres-faults.ts';
import { FaultError } from './protocol.ts';
import type { World } from './world.ts';

/**
 * Longer than the checks of messages in flight take, but short enough that later redeliveries still happen in the run.
 */
const LONG_VISIBILITY_SECONDS = 100;
const HOUR_MS = 3_600_000;

function expect(condition: boolean, message: string): asserts condition {
  if (!condition) throw new FaultError(message);
}

/**
 * Sends SIGTERM to the loader, then to the worker, while there is work. Both exit with 0, and the loader stages or
 * returns all messages that it has received. No visibility timeout ends in the meantime, so messages leave the state
 * in flight only if the loader returns them or the worker deletes them.
 */
export async function stopUnderLoad(world: World): Promise<void> {
  const { queue, loader, worker, traffic, superuser } = world;
  // Messages that earlier faults left in flight would count here.
  await until(async () => (await inFlight(world)) === 0, 60_000);
  const usual = queue.visibilitySeconds;
  queue.visibilitySeconds = LONG_VISIBILITY_SECONDS;
  // A poll that gets no response takes longer than the grace period, and the loader waits for its polls.
  queue.isPaused = true;
  try {
    await until(() => queue.hanging === 0, 60_000);
    await traffic.send(400);
    await until(async () => (await numberOf(superuser, PENDING_BATCHES)) > 0, 10_000, 10);
    const ended = await loader.stop('SIGTERM');
    expect(ended === 0, `the loader ended with ${ended} after SIGTERM`);
    await until(async () => (await numberOf(superuser, PENDING_BATCHES)) === 0);
    expect(
      await until(async () => (await inFlight(world)) === 0, 5_000),
      'messages are in flight after SIGTERM',
    );
    loader.start();
    await traffic.send(200);
    await until(async () => (await numberOf(superuser, PENDING_BATCHES)) > 0, 10_000, 10);
    const { rows } = await superuser.query<{ id: string }>(
      'select worker_id as id from staging.workers order by seen_at desc limit 1',
    );
    const id = rows[0]?.id;
    const workerEnded = await worker.end('SIGTERM');
    expect(workerEnded === 0, `the worker ended with ${workerEnded} after SIGTERM`);
    await world.recovery.measure('SIGTERM under load');
    // Checks only this worker, because a worker that was killed earlier may have left jobs locked.
    const locked = `select count(*) from graphile_worker._private_jobs where locked_by = '${id}'`;
    expect((await numberOf(superuser, locked)) === 0, 'the worker left jobs locked after SIGTERM');
    world.hit('SIGTERM under load');
  } finally {
    queue.visibilitySeconds = usual;
    queue.isPaused = false;
  }
}

/** A second SIGTERM ends the loader at once, while the first shutdown hangs because of a stalled network. */
export async function stopTwice(world: World): Promise<void> {
  const { loader, traffic, postgres } = world;
  const endStall = postgres.stall();
  try {
    await traffic.send(200);
    await sleep(1_500);
    loader.signal('SIGTERM');
    await sleep(1_000);
    expect(loader.isAlive, 'the loader did not wait for its batches after SIGTERM');
    const at = performance.now();
    const ended = await loader.end('SIGTERM');
    expect(ended === 1, `the loader ended with ${ended} after the second SIGTERM`);
    expect(performance.now() - at < 5_000, 'the second SIGTERM did not end the loader at once');
  } finally {
    endStall();
  }
  world.hit('SIGTERM twice');
  await world.recovery.measure('SIGTERM twice');
}

/**
 * Postgres is slower than the queue for ten minutes. Meanwhile the visibility timeout is longer. Otherwise messages
 * would wait for many times the timeout, and each would be delivered many times.
 */
export async function longOverload(world: World, seconds: number): Promise<void> {
  const { queue } = world;
  const usual = queue.visibilitySeconds;
  queue.visibilitySeconds = LONG_VISIBILITY_SECONDS;
  try {
    await overload(world, seconds, `Postgres slower than the queue, for ${seconds / 60} minutes`);
    const isDone = await until(async () => (await world.remains()).queue.size === 0, 300_000, 1_000);
    expect(isDone, 'the backlog was not masked within five minutes');
  } finally {
    queue.visibilitySeconds = usual;
  }
}

/**
 * Postgres is slower than the queue: the backlog stays below its limit, memory does not grow, no message is
 * dead-lettered.
 */
export async function overload(
  world: World,
  seconds: number,
  kind = 'Postgres slower than the queue',
): Promise<void> {
  const { loader, traffic, superuser, postgres } = world;
  const limit = 200;
  await loader.stop('SIGTERM');
  // Batches that were staged under the default limit must not count.
  await until(async () => (await numberOf(superuser, PENDING_BATCHES)) === 0);
  await retried(() => superuser.query(SLOW_MASKING));
  loader.start({ LOAD_MAX_STAGED_ROWS: String(limit) });
  postgres.latencyMs = 30;
  await traffic.send(100 * Math.ceil(seconds));
  const memory: number[] = [];
  let highest = 0;
  for (let at = 0; at < seconds * 4; at += 1) {
    await sleep(250);
    memory.push(loader.memory);
    const staged = 'select sum(rows) from staging.batches where masked_at is null and lost_at is null';
    highest = Math.max(highest, await numberOf(superuser, staged));
  }
  const waiting = (await world.remains()).queue.size;
  postgres.latencyMs = 0;
  await superuser.query('drop trigger slow_masking on public.user_logins');
  expect(waiting > 0, 'Postgres was not slower than the queue');
  // In addition to the limit: two batches in memory, and a poll of ten messages for each of eight pollers.
  expect(highest <= limit + 2 * 40 + 80, `${highest} rows were staged, with a limit of ${limit}`);
  expect(highest >= limit / 2, `the backlog did not come near its limit: ${highest}`);
  const third = Math.ceil(memory.length / 3);
  const growth = Math.max(...memory.slice(-third)) - Math.max(...memory.slice(third, 2 * third));
  expect(growth < 48, `the loader's memory grew by ${Math.round(growth)} MiB`);
  expect((await world.remains()).deadLetterQueue.size === 0, 'messages were dead-lettered');
  await loader.stop('SIGTERM');
  loader.start();
  world.hit(kind);
}

const SLOW_MASKING = `
  create schema if not exists faults;
  create or replace function faults.slow_masking() returns trigger language plpgsql as $$
  begin perform pg_sleep(1.5); return null; end $$;
  create or replace trigger slow_masking before insert on public.user_logins
  for each statement execute function faults.slow_masking()`;

/** A crash seals the database, and the next worker has no key. Nothing is masked until a worker with the key starts. */
export async function withoutKek(world: World): Promise<void> {
  const { worker, superuser, traffic } = world;
  await worker.stop('SIGTERM');
  await world.killPostgres('SIGKILL');
  worker.start({ MASKING_KEK_FILE: '' });
  const isSealed = async () => (await numberOf(superuser, 'select masking.is_sealed()::int')) === 1;
  expect(await until(isSealed), 'a crash did not seal the database');
  const before = await numberOf(superuser, MASKED_ROWS);
  await traffic.send(80);
  expect(
    await until(async () => (await numberOf(superuser, PENDING_BATCHES)) > 0),
    'nothing was staged while sealed',
  );
  await sleep(2_000);
  expect((await numberOf(superuser, MASKED_ROWS)) === before, 'rows were masked without a key');
  await worker.stop('SIGTERM');
  worker.start();
  world.hit('KEK missing for a while');
  await world.recovery.measure('KEK missing for a while');
}

/** The wall clocks of loader and worker jump forwards or backwards while they work. */
export async function jumpClock(world: World): Promise<void> {
  const { loader, worker, traffic, random } = world;
  const shift = random.pick([-26 * HOUR_MS, -HOUR_MS, HOUR_MS, 26 * HOUR_MS]);
  await traffic.send(60);
  for (const process of [loader, worker]) process.send({ shift });
  await traffic.send(60);
  await world.recovery.measure('clock jump');
  for (const process of [loader, worker]) process.send({ shift: 0 });
  world.hit('clock jump');
}

/**
 * A hundred batches fail at each attempt to mask them. Others are masked in the meantime. Once the cause is gone, all are.
 */
export async function failRepeatedly(world: World): Promise<void> {
  const { loader, superuser, traffic } = world;
  await loader.stop('SIGTERM');
  await retried(() => superuser.query(POISON));
  loader.start({ LOAD_BATCH_ROWS: '8' });
  const poisoned = 'select count(*) from faults.poisoned';
  const maskedMeanwhile = `select count(*) from staging.batches b
    where b.masked_at is not null and b.staged_at > (select min(at) from faults.poisoned)`;
  for (let round = 0; (await numberOf(superuser, poisoned)) < 100 && round < 40; round += 1) {
    await traffic.send(160);
    await until(async () => (await world.remains()).queue.size < 600, 20_000);
  }
  const failing = `select count(*) from faults.poisoned p join graphile_worker._private_jobs j
    on j.key = 'mask_batch:' || p.batch_id where j.attempts > 0 and j.last_error is not null`;
  expect((await numberOf(superuser, poisoned)) === 100, 'there were not a hundred batches to fail');
  expect(
    await until(async () => (await numberOf(superuser, failing)) === 100),
    'not all of the hundred batches failed',
  );
  expect((await numberOf(superuser, maskedMeanwhile)) > 0, 'no other batch was masked meanwhile');
  await superuser.query(
    'drop trigger fail_poisoned on staging.batches; drop trigger poison on staging.batches',
  );
  await loader.stop('SIGTERM');
  loader.start();
  world.hit('100 batches that fail repeatedly');
  await world.recovery.measure('100 batches that fail repeatedly');
}

/** Every second batch, up to a hundred, fails with an error that is not caused by a row. */
const POISON = `
  create schema if not exists faults;
  create table if not exists faults.poisoned (batch_id uuid primary key, at timestamptz not null default now());
  truncate faults.poisoned;
  create sequence if not exists faults.turn;
  create or replace function faults.poison() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  begin
    if nextval('faults.turn') % 2 = 0 and (select count(*) from faults.poisoned) < 100 then
      insert into faults.poisoned (batch_id) values (new.batch_id) on conflict do nothing;
    end if;
    return null;
  end $$;
  create or replace function faults.fail_poisoned() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  begin
    if new.masked_at is not null and exists (select from faults.poisoned p where p.batch_id = new.batch_id) then
      raise exception using errcode = '55000', message = 'refused for good';
    end if;
    return null;
  end $$;
  create or replace trigger poison after insert on staging.batches
  for each row execute function faults.poison();
  create or replace trigger fail_poisoned after update on staging.batches
  for each row execute function faults.fail_poisoned()`;

async function inFlight({ stack }: World): Promise<number> {
  const answer = await fetch(new URL('/_fauxqs/queues', stack.file.endpoint));
  const queues = (await answer.json()) as { url: string; approximateInflightCount: number }[];
  return queues.find(({ url }) => url === stack.file.queueUrl)?.approximateInflightCount ?? 0;
}
