import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest';
import { FatalError } from '../../src/errors.ts';
import type { LoaderProgress } from '../../src/load/progress.ts';
import { runLoader, type LoaderOptions } from '../../src/load/run.ts';
import { refusal, startFakeSqs } from '../queue/fake-sqs.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { optionsFor, recordingLog, settingsWith, startQueue, type TestQueue } from './loader.ts';
import { PostgresProxy } from './proxy.ts';

let db: TestDatabase;
let sqs: TestQueue;
let postgres: PostgresProxy;

beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());
beforeEach(async () => {
  await db.superuser.query('delete from staging.batches');
  await db.superuser.query('truncate staging.raw_messages');
  sqs = await startQueue();
  postgres = await PostgresProxy.start(db.urls.loader);
});
afterEach(async () => {
  await postgres.stop();
  await sqs.stop();
});

const until = (state: () => unknown) =>
  vi.waitFor(async () => expect(await state()).toBeTruthy(), { timeout: 30_000, interval: 20 });

/** In place of the back-off's waits, which add up to some seconds. */
const hardly = () => new Promise<void>((resolve) => void setImmediate(resolve));

const staged = async () => {
  const { rows } = await db.superuser.query(
    `select count(*)::int as rows, count(distinct message_id)::int as messages,
       (select count(*)::int from staging.batches) as batches from staging.raw_messages`,
  );
  return rows[0] as { rows: number; messages: number; batches: number };
};

/** A loader that follows the queue, and what it counts. */
function follow(variables: Record<string, string> = {}, more: Partial<LoaderOptions> = {}) {
  const stop = new AbortController();
  const progress: { now?: LoaderProgress; mostInMemory: number } = { mostInMemory: 0 };
  const run = runLoader({
    ...optionsFor(sqs.queue, postgres.url),
    settings: settingsWith(variables),
    follow: true,
    stop: stop.signal,
    ...more,
    onProgress: (now) => {
      progress.now = now;
      progress.mostInMemory = Math.max(progress.mostInMemory, now.received - now.staged);
    },
  });
  return { run, progress, stop: () => stop.abort() };
}

test('a batch whose COMMIT nobody answered is staged once', async () => {
  sqs.send(10);
  postgres.losesAnswersToCommits = 1;
  const summary = await runLoader(optionsFor(sqs.queue, postgres.url));
  expect(postgres.losesAnswersToCommits).toBe(0);
  expect(summary).toMatchObject({ received: 10, staged: 10 });
  expect(await staged()).toEqual({ rows: 10, messages: 10, batches: summary.batches });
});

test('while Postgres is away it stops receiving, and loses nothing', async () => {
  sqs.send(1);
  const loader = follow({ LOAD_BATCH_ROWS: '20', SQS_MAX_POLLERS: '3' });
  await until(() => loader.progress.now?.staged === 1);
  await postgres.cut();
  sqs.send(300);
  await until(() => loader.progress.now!.received > 1);
  await postgres.restore();
  await until(() => loader.progress.now?.staged === 301);
  loader.stop();
  expect(await loader.run).toMatchObject({ received: 301, staged: 301, released: 0, exitCode: 0 });
  // Two batches, and what three pollers had under way.
  expect(loader.progress.mostInMemory).toBeLessThanOrEqual(2 * 20 + 3 * 10);
  expect(await staged()).toMatchObject({ rows: 301, messages: 301 });
});

test('told to stop while Postgres is away, it gives back what was never staged', async () => {
  sqs.send(1);
  const loader = follow();
  await until(() => loader.progress.now?.staged === 1);
  await postgres.cut();
  sqs.send(8);
  await until(() => loader.progress.now?.received === 9);
  loader.stop();
  expect(await loader.run).toMatchObject({ received: 9, staged: 1, released: 8, exitCode: 0 });
  expect(sqs.counts()).toEqual({ ready: 8, inFlight: 1, delayed: 0 });
});

test('when stopping takes longer than it may, it gives back what was never staged and ends with 1', async () => {
  sqs.send(1);
  const loader = follow({ SHUTDOWN_GRACE_SECONDS: '1' });
  await until(() => loader.progress.now?.staged === 1);
  postgres.freeze();
  sqs.send(8);
  await until(() => loader.progress.now?.received === 9);
  loader.stop();
  expect(await loader.run).toMatchObject({ staged: 1, released: 8, exitCode: 1 });
  expect(sqs.counts()).toEqual({ ready: 8, inFlight: 1, delayed: 0 });
});

test('a Postgres that is not there yet is waited for, and named without its password', async () => {
  sqs.send(3);
  await postgres.cut();
  const { log, lines } = recordingLog();
  const run = runLoader({ ...optionsFor(sqs.queue, postgres.url), log });
  await until(() => lines().length > 0);
  const { host, password } = new URL(postgres.url);
  expect(lines()[0]).toMatchObject({ level: 40, cause: expect.stringContaining('nothing listens') });
  expect(JSON.stringify(lines())).toContain(host);
  expect(JSON.stringify(lines())).not.toContain(password);
  await postgres.restore();
  expect(await run).toMatchObject({ staged: 3, exitCode: 0 });
});

test('told to stop while it waits for Postgres, it ends', async () => {
  await postgres.cut();
  const loader = follow();
  loader.stop();
  expect(await loader.run).toMatchObject({ received: 0, exitCode: 0 });
});

test('a right that is taken away ends it, after what was received has gone back to the queue', async () => {
  sqs.send(1);
  const loader = follow({}, { pause: hardly });
  await until(() => loader.progress.now?.staged === 1);
  await db.superuser.query('revoke insert on staging.inbox from logins_loader');
  try {
    sqs.send(4);
    await expect(loader.run).rejects.toThrow(FatalError);
    expect(sqs.counts()).toEqual({ ready: 4, inFlight: 1, delayed: 0 });
  } finally {
    await db.superuser.query('grant insert on staging.inbox to logins_loader');
  }
});

test('SQS that fails is asked less and less often', async () => {
  const failing = await startFakeSqs(() => refusal('InternalFailure', 500));
  const stop = new AbortController();
  const pauses: number[] = [];
  const pause = async (ms: number) => {
    pauses.push(ms);
    if (pauses.length === 6) stop.abort();
  };
  const options = optionsFor(failing.queue, db.urls.loader);
  const summary = await runLoader({ ...options, follow: true, stop: stop.signal, pause });
  await failing.stop();
  expect(summary).toMatchObject({ received: 0, exitCode: 0 });
  expect(pauses.map((ms, n) => ms >= 5 * 2 ** n && ms <= 10 * 2 ** n)).toEqual(
    Array.from({ length: 6 }, () => true),
  );
});

test('one empty answer does not end it: messages that SQS still counts are waited for', async () => {
  let counted = 0;
  const slow = await startFakeSqs(({ action }) => {
    if (action === 'ReceiveMessage') return { body: {} };
    counted += 1;
    return { body: { Attributes: { ApproximateNumberOfMessages: counted < 3 ? '5' : '0' } } };
  });
  await runLoader(optionsFor(slow.queue, db.urls.loader));
  await slow.stop();
  expect(counted).toBe(3);
  expect(slow.requests.filter(({ action }) => action === 'ReceiveMessage').length).toBeGreaterThanOrEqual(9);
});

test('a queue whose counts may not be read cannot be drained, and that is told', async () => {
  const secretive = await startFakeSqs(({ action }) =>
    action === 'ReceiveMessage' ? { body: {} } : refusal('AccessDenied', 403),
  );
  await expect(runLoader(optionsFor(secretive.queue, db.urls.loader))).rejects.toThrow(FatalError);
  await secretive.stop();
});

test('without --follow it gives up a Postgres that is not there, after the time that it has', async () => {
  await postgres.cut();
  const { log, lines } = recordingLog();
  const settings = settingsWith({ LOAD_RETRY_TIMEOUT_SECONDS: '1' });
  const run = runLoader({ ...optionsFor(sqs.queue, postgres.url), settings, log });
  await expect(run).rejects.toThrow(FatalError);
  expect(lines().filter(({ level }) => level === 40)).toHaveLength(1);
});

test('without --follow it gives up a Postgres that goes away, and gives back what was never staged', async () => {
  sqs.send(5);
  postgres.losesAnswersToCommits = Number.POSITIVE_INFINITY;
  const settings = settingsWith({ LOAD_RETRY_TIMEOUT_SECONDS: '1', LOAD_BATCH_MS: '200' });
  const run = runLoader({
    ...optionsFor(sqs.queue, postgres.url),
    settings,
    onProgress: ({ received }) => {
      if (received === 5) void postgres.cut();
    },
  });
  await expect(run).rejects.toThrow(FatalError);
  expect(sqs.counts()).toEqual({ ready: 5, inFlight: 0, delayed: 0 });
});

test('without --follow it gives up a Postgres that answers and takes no rows', async () => {
  await db.superuser.query(
    `create function public.disk_full() returns trigger language plpgsql
       as $$ begin raise exception using errcode = 'disk_full'; end $$;
     create trigger disk_full before insert on staging.batches for each row execute function public.disk_full()`,
  );
  try {
    sqs.send(3);
    const settings = settingsWith({ LOAD_RETRY_TIMEOUT_SECONDS: '2' });
    const { log, lines } = recordingLog();
    await expect(runLoader({ ...optionsFor(sqs.queue, postgres.url), settings, log })).rejects.toThrow(
      FatalError,
    );
    expect(lines().map(({ level }) => level)).toEqual([40]);
    expect(sqs.counts()).toEqual({ ready: 3, inFlight: 0, delayed: 0 });
  } finally {
    await db.superuser.query('drop function public.disk_full() cascade');
  }
});

test('without --follow it gives up an SQS that fails', async () => {
  const failing = await startFakeSqs(() => refusal('InternalFailure', 500));
  const settings = settingsWith({ LOAD_RETRY_TIMEOUT_SECONDS: '1' });
  await expect(runLoader({ ...optionsFor(failing.queue, db.urls.loader), settings })).rejects.toThrow(
    FatalError,
  );
  await failing.stop();
});

test('without --follow it gives up when the backlog stands still', async () => {
  await db.superuser.query(
    `insert into staging.batches (batch_id, rows, staged_at) values (gen_random_uuid(), 1, now() - interval '1 h')`,
  );
  sqs.send(1);
  const settings = settingsWith({ LOAD_RETRY_TIMEOUT_SECONDS: '2' });
  await expect(runLoader({ ...optionsFor(sqs.queue, postgres.url), settings })).rejects.toThrow(FatalError);
  expect(sqs.counts()).toEqual({ ready: 1, inFlight: 0, delayed: 0 });
});

test('told to stop, it says at once how long the poll under way may take, to the second', async () => {
  const told: number[] = [];
  sqs.send(1);
  const loader = follow({ SQS_WAIT_TIME_SECONDS: '3' }, { onStopping: (seconds) => told.push(seconds) });
  await until(() => loader.progress.now?.staged === 1);
  const stoppedAt = performance.now();
  loader.stop();
  expect(told).toHaveLength(1);
  await loader.run;
  const took = (performance.now() - stoppedAt) / 1_000;
  expect(told[0]).toBeLessThanOrEqual(3);
  expect(took).toBeLessThan(told[0]! + 1);
  expect(took).toBeGreaterThan(told[0]! - 1.5);
});

test('told to stop while no poll is under way, it says that there is nothing to wait for', async () => {
  const told: number[] = [];
  await postgres.cut();
  const loader = follow({}, { onStopping: (seconds) => told.push(seconds) });
  loader.stop();
  await loader.run;
  expect(told).toEqual([0]);
});

test('told to leave, it waits for no poll, and gives back at once what was never staged', async () => {
  const leaving = new AbortController();
  sqs.send(1);
  const loader = follow({ SQS_WAIT_TIME_SECONDS: '20' }, { leave: leaving.signal });
  await until(() => loader.progress.now?.staged === 1);
  postgres.freeze();
  sqs.send(4);
  await until(() => loader.progress.now?.received === 5);
  loader.stop();
  leaving.abort();
  expect(await loader.run).toMatchObject({ staged: 1, released: 4, exitCode: 1 });
  expect(sqs.counts()).toEqual({ ready: 4, inFlight: 1, delayed: 0 });
});
