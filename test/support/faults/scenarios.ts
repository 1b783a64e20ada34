import { setTimeout as sleep } from 'node:timers/promises';
import { MASKED_ROWS, numberOf, OPEN_BATCHES, until } from './asking.ts';
import { retried } from './postgres-faults.ts';
import { FaultError } from './protocol.ts';
import type { World } from './world.ts';

/** Longer than this look at what is in flight takes, and short enough for what a later fault leaves there to come back. */
const LONG_VISIBILITY_SECONDS = 100;
const HOUR_MS = 3_600_000;

function expect(holds: boolean, words: string): asserts holds {
  if (!holds) throw new FaultError(words);
}

/**
 * SIGTERM of the loader, then of the worker, while there is work: both end well, and what the loader had received is
 * staged or given back. Nothing can come back by a time-out meanwhile, so in-flight at 0 means just that.
 */
export async function stopUnderLoad(world: World): Promise<void> {
  const { queue, loader, worker, traffic, superuser } = world;
  // What earlier faults left in flight has to come back before, or it would count here.
  await until(async () => (await inFlight(world)) === 0, 60_000);
  const usual = queue.visibilitySeconds;
  queue.visibilitySeconds = LONG_VISIBILITY_SECONDS;
  // A poll that SQS never answers outlasts the time there is for stopping, and rightly so.
  queue.isHeldBack = true;
  try {
    await until(() => queue.hanging === 0, 60_000);
    await traffic.send(400);
    await until(async () => (await numberOf(superuser, OPEN_BATCHES)) > 0, 10_000, 10);
    const ended = await loader.stop('SIGTERM');
    expect(ended === 0, `the loader ended with ${ended} at SIGTERM`);
    await until(async () => (await numberOf(superuser, OPEN_BATCHES)) === 0);
    expect(
      await until(async () => (await inFlight(world)) === 0, 5_000),
      'messages are in flight after SIGTERM',
    );
    loader.start();
    await traffic.send(200);
    await until(async () => (await numberOf(superuser, OPEN_BATCHES)) > 0, 10_000, 10);
    const { rows } = await superuser.query<{ id: string }>(
      'select worker_id as id from staging.workers order by seen_at desc limit 1',
    );
    const id = rows[0]?.id;
    const workerEnded = await worker.end('SIGTERM');
    expect(workerEnded === 0, `the worker ended with ${workerEnded} at SIGTERM`);
    await world.recovery.measure('SIGTERM under load');
    // A worker that ends in good order leaves no job locked; one that was killed earlier may have.
    const locked = `select count(*) from graphile_worker._private_jobs where locked_by = '${id}'`;
    expect((await numberOf(superuser, locked)) === 0, 'a worker that was told to end has left jobs locked');
    world.hit('SIGTERM under load');
  } finally {
    queue.visibilitySeconds = usual;
    queue.isHeldBack = false;
  }
}

/** A second SIGTERM, while the first one's end hangs in a dead network: the process is gone at once. */
export async function stopTwice(world: World): Promise<void> {
  const { loader, traffic, postgres } = world;
  const open = postgres.swallow();
  try {
    await traffic.send(200);
    await sleep(1_500);
    loader.signal('SIGTERM');
    await sleep(1_000);
    expect(loader.isAlive, 'the loader did not wait for what it had in hand');
    const at = performance.now();
    const ended = await loader.end('SIGTERM');
    expect(ended === 1, `the loader ended with ${ended} at the second SIGTERM`);
    expect(performance.now() - at < 5_000, 'the second SIGTERM did not end the loader at once');
  } finally {
    open();
  }
  world.hit('SIGTERM twice');
  await world.recovery.measure('SIGTERM twice');
}

/**
 * Postgres slower than the queue for ten minutes. Messages stay hidden for as long as the loader asks meanwhile, as they do
 * in SQS: with a time-out a tenth of what waiting takes, everything would come ten times over.
 */
export async function longOverload(world: World, seconds: number): Promise<void> {
  const { queue } = world;
  const usual = queue.visibilitySeconds;
  queue.visibilitySeconds = LONG_VISIBILITY_SECONDS;
  try {
    await overload(world, seconds, `Postgres slower than the queue, for ${seconds / 60} minutes`);
    const isDone = await until(async () => (await world.remains()).queue.size === 0, 300_000, 1_000);
    expect(isDone, 'what had waited was not masked in five minutes');
  } finally {
    queue.visibilitySeconds = usual;
  }
}

/** Postgres slower than the queue: the backlog stays at its ceiling, memory flat, nothing is dead-lettered. */
export async function overload(
  world: World,
  seconds: number,
  kind = 'Postgres slower than the queue',
): Promise<void> {
  const { loader, traffic, superuser, postgres } = world;
  const ceiling = 200;
  await loader.stop('SIGTERM');
  // What the loader staged under its usual ceiling is not to be held against this one.
  await until(async () => (await numberOf(superuser, OPEN_BATCHES)) === 0);
  await retried(() => superuser.query(SLOW_MASKING));
  loader.start({ LOAD_MAX_STAGED_ROWS: String(ceiling) });
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
  // Beside the ceiling: two batches in memory, and a poll of ten for each of eight pollers.
  expect(highest <= ceiling + 2 * 40 + 80, `${highest} rows were staged past a ceiling of ${ceiling}`);
  expect(highest >= ceiling / 2, `the backlog never came near its ceiling: ${highest}`);
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

/** A crash seals the database, and the worker that starts has no key: nothing is masked until one comes that has. */
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
    await until(async () => (await numberOf(superuser, OPEN_BATCHES)) > 0),
    'nothing was staged while sealed',
  );
  await sleep(2_000);
  expect((await numberOf(superuser, MASKED_ROWS)) === before, 'something was masked without a key');
  await worker.stop('SIGTERM');
  worker.start();
  world.hit('the KEK absent for a while');
  await world.recovery.measure('the KEK absent for a while');
}

/** The wall clocks of loader and worker jump, forwards or backwards, in the middle of their work. */
export async function jumpClock(world: World): Promise<void> {
  const { loader, worker, traffic, random } = world;
  const shift = random.pick([-26 * HOUR_MS, -HOUR_MS, HOUR_MS, 26 * HOUR_MS]);
  await traffic.send(60);
  for (const process of [loader, worker]) process.say({ shift });
  await traffic.send(60);
  await world.recovery.measure('a clock that jumps');
  for (const process of [loader, worker]) process.say({ shift: 0 });
  world.hit('a clock that jumps');
}

/** A hundred batches fail whenever they are masked; others are masked meanwhile; once the cause is gone, all are. */
export async function failForGood(world: World): Promise<void> {
  const { loader, superuser, traffic } = world;
  await loader.stop('SIGTERM');
  await retried(() => superuser.query(POISON));
  loader.start({ LOAD_BATCH_ROWS: '8' });
  const poisoned = 'select count(*) from faults.poisoned';
  const well = `select count(*) from staging.batches b
    where b.masked_at is not null and b.staged_at > (select min(at) from faults.poisoned)`;
  for (let round = 0; (await numberOf(superuser, poisoned)) < 100 && round < 40; round += 1) {
    await traffic.send(160);
    await until(async () => (await world.remains()).queue.size < 600, 20_000);
  }
  const failing = `select count(*) from faults.poisoned p join graphile_worker._private_jobs j
    on j.key = 'mask_batch:' || p.batch_id where j.attempts > 0 and j.last_error is not null`;
  expect((await numberOf(superuser, poisoned)) === 100, 'there were no hundred batches to fail');
  expect(await until(async () => (await numberOf(superuser, failing)) === 100), 'not all of them failed');
  expect((await numberOf(superuser, well)) > 0, 'no other batch was masked meanwhile');
  await superuser.query(
    'drop trigger fail_poisoned on staging.batches; drop trigger poison on staging.batches',
  );
  await loader.stop('SIGTERM');
  loader.start();
  world.hit('100 batches that fail for good');
  await world.recovery.measure('100 batches that fail for good');
}

/** Every other batch, until there are a hundred, is refused with an error that no row is to blame for. */
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
