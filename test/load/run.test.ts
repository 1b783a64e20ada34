import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest';
import { FatalError } from '../../src/errors.ts';
import { runLoader } from '../../src/load/run.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { optionsFor, recordingLog, settingsWith, startQueue, type TestQueue } from './loader.ts';

let db: TestDatabase;
let sqs: TestQueue;

beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());
beforeEach(async () => {
  await db.superuser.query('delete from staging.batches');
  await db.superuser.query('truncate staging.raw_messages');
  sqs = await startQueue();
});
afterEach(() => sqs.stop());

const until = (state: () => unknown | Promise<unknown>) =>
  vi.waitFor(async () => expect(await state()).toBeTruthy(), { timeout: 30_000, interval: 20 });

const stagedRows = async () => {
  const { rows } = await db.superuser.query('select count(*)::int as n from staging.raw_messages');
  return rows[0].n as number;
};

const maskAll = () =>
  db.superuser.query('update staging.batches set masked_at = now() where masked_at is null');

test('without --follow it stages every message once and ends when the queue is empty', async () => {
  sqs.send(95);
  const summary = await runLoader(optionsFor(sqs.queue, db.urls.loader));
  expect(summary).toMatchObject({ received: 95, staged: 95, redelivered: 0, released: 0, exitCode: 0 });
  const { rows } = await db.superuser.query(
    'select count(distinct message_id)::int as messages, count(distinct batch_id)::int as batches from staging.raw_messages',
  );
  expect(rows[0]).toEqual({ messages: 95, batches: summary.batches });
  const ledger = await db.superuser.query(
    'select sum(rows)::int as rows, count(*)::int as batches from staging.batches',
  );
  expect(ledger.rows[0]).toEqual({ rows: 95, batches: summary.batches });
});

test('it deletes nothing from the queue', async () => {
  sqs.send(12);
  await runLoader(optionsFor(sqs.queue, db.urls.loader));
  expect(sqs.counts()).toEqual({ ready: 0, inFlight: 12, delayed: 0 });
});

test('a message with a delay that has not ended keeps it from ending', async () => {
  sqs.server.sendMessage('login-queue', '{}', { region: 'eu-west-1', delaySeconds: 2 });
  const summary = await runLoader(optionsFor(sqs.queue, db.urls.loader));
  expect(summary.staged).toBe(1);
});

test('what is received is staged as it was sent', async () => {
  const body = '{"user_id":"ü\\u0000","n":1e999999} not json 漢';
  const { messageId } = sqs.server.sendMessage('login-queue', body, { region: 'eu-west-1' });
  await runLoader(optionsFor(sqs.queue, db.urls.loader));
  const { rows } = await db.superuser.query(
    'select message_id, receive_count, body, sent_at, length(receipt_handle) as handle from staging.raw_messages',
  );
  expect(rows[0]).toMatchObject({ message_id: messageId, receive_count: 1, body: Buffer.from(body) });
  expect(Math.abs(Date.now() - rows[0].sent_at.getTime())).toBeLessThan(60_000);
  expect(rows[0].handle).toBeGreaterThan(0);
});

test('a batch has no more rows than it may', async () => {
  sqs.send(50);
  const settings = settingsWith({ LOAD_BATCH_ROWS: '7', LOAD_BATCH_MS: '1000' });
  await runLoader({ ...optionsFor(sqs.queue, db.urls.loader), settings });
  const { rows } = await db.superuser.query('select max(rows) as rows from staging.batches');
  expect(rows[0].rows).toBe(7);
});

test('with --follow it pauses at the ceiling, says so once, and goes on when rows are masked', async () => {
  sqs.send(100);
  const { log, lines } = recordingLog();
  const stop = new AbortController();
  const settings = settingsWith({ LOAD_MAX_STAGED_ROWS: '30', SQS_MAX_POLLERS: '2' });
  const base = optionsFor(sqs.queue, db.urls.loader);
  const run = runLoader({ ...base, settings, log, follow: true, stop: stop.signal });
  await until(() => lines().some((line) => line['level'] === 40));
  await until(async () => (await stagedRows()) >= 30);
  // The ceiling, and what the two pollers had under way.
  expect(await stagedRows()).toBeLessThanOrEqual(50);
  await until(async () => {
    await maskAll();
    return sqs.counts().ready === 0;
  });
  await until(async () => (await stagedRows()) === 100);
  stop.abort();
  expect(await run).toMatchObject({ received: 100, staged: 100, exitCode: 0 });
  expect(lines().filter((line) => line['level'] === 40)).toHaveLength(1);
});

test('it pauses when rows wait for longer than half of the visibility timeout', async () => {
  await db.superuser.query(
    `insert into staging.batches (batch_id, rows, staged_at) values (gen_random_uuid(), 1, now() - interval '11 s')`,
  );
  sqs.send(1);
  const { log, lines } = recordingLog();
  const settings = settingsWith({ SQS_VISIBILITY_TIMEOUT_SECONDS: '20' });
  const run = runLoader({ ...optionsFor(sqs.queue, db.urls.loader), settings, log });
  await until(() => lines().some((line) => line['level'] === 40));
  expect(sqs.counts()).toMatchObject({ ready: 1, inFlight: 0 });
  await maskAll();
  expect(await run).toMatchObject({ staged: 1 });
});

test('paused and with nothing in the queue, it ends', async () => {
  await db.superuser.query(
    `insert into staging.batches (batch_id, rows, staged_at) values (gen_random_uuid(), 1, now() - interval '1 h')`,
  );
  expect(await runLoader(optionsFor(sqs.queue, db.urls.loader))).toMatchObject({ received: 0, exitCode: 0 });
});

test('while it is paused it tells how many rows wait, as they become fewer', async () => {
  const insert = `insert into staging.batches (batch_id, rows, staged_at) values (gen_random_uuid(), $1, now())`;
  for (const rows of [500, 40]) await db.superuser.query(insert, [rows]);
  const told = new Set<number>();
  const stop = new AbortController();
  const run = runLoader({
    ...optionsFor(sqs.queue, db.urls.loader),
    settings: settingsWith({ LOAD_MAX_STAGED_ROWS: '30' }),
    follow: true,
    stop: stop.signal,
    onProgress: ({ backlog }) => told.add(backlog),
  });
  await until(() => told.has(540));
  await db.superuser.query('update staging.batches set masked_at = now() where rows = 500');
  await until(() => told.has(40));
  stop.abort();
  expect(await run).toMatchObject({ received: 0, exitCode: 0 });
});

test('told to stop, it lets the poll under way end and stages what that brings', async () => {
  const stop = new AbortController();
  const settings = settingsWith({ SQS_WAIT_TIME_SECONDS: '5' });
  let isPolling = false;
  sqs.server.sendMessage('login-queue', '{}', { region: 'eu-west-1' });
  const run = runLoader({
    ...optionsFor(sqs.queue, db.urls.loader),
    settings,
    follow: true,
    stop: stop.signal,
    onProgress: ({ staged }) => {
      isPolling = staged === 1;
    },
  });
  await until(() => isPolling);
  stop.abort();
  sqs.send(1);
  expect(await run).toMatchObject({ received: 2, staged: 2, released: 0, exitCode: 0 });
});

test('a wrong password is told at once', async () => {
  const url = new URL(db.urls.loader);
  url.password = 'wrong';
  await expect(runLoader(optionsFor(sqs.queue, url.toString()))).rejects.toThrow(FatalError);
});

test('a database that is not there is told at once', async () => {
  const url = new URL(db.urls.loader);
  url.pathname = '/nothing_here';
  await expect(runLoader(optionsFor(sqs.queue, url.toString()))).rejects.toThrow(FatalError);
});

test('a database that is not migrated is told at once', async () => {
  const url = new URL(db.urls.superuser);
  url.pathname = '/postgres';
  await expect(runLoader(optionsFor(sqs.queue, url.toString()))).rejects.toThrow(FatalError);
});

test.each(['analyst', 'worker', 'custodian', 'auditor'] as const)(
  "the %s's login, which may not stage, is told at once, though the queue is empty",
  async (login) => {
    await expect(runLoader(optionsFor(sqs.queue, db.urls[login]))).rejects.toThrow(FatalError);
  },
);

test('a queue that is not there is told at once', async () => {
  const queue = { ...sqs.queue, url: `${sqs.queue.url}-other` };
  await expect(runLoader(optionsFor(queue, db.urls.loader))).rejects.toThrow(FatalError);
});
