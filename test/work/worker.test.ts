import { randomBytes } from 'node:crypto';
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest';
import { readSettings, type Settings } from '../../src/config.ts';
import { bytea, copyIn, encodeRows } from '../../src/database/copy.ts';
import { fingerprintOf, rewrap } from '../../src/database/kek.ts';
import { databaseAt } from '../../src/database/url.ts';
import { startEmulator, type Emulator } from '../../local/sqs/emulator.ts';
import { createLogger } from '../../src/log.ts';
import { createQueueClient } from '../../src/queue/client.ts';
import { countMessages } from '../../src/queue/counts.ts';
import { runWorker, runWorkerOnce } from '../../src/work/worker.ts';
import { event } from '../support/bodies.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { openTransaction } from '../support/keys.ts';
import { until } from '../support/pipeline.ts';
import { workerOptions } from './options.ts';
import { stageReceived } from './stage-received.ts';

let emulator: Emulator;
let db: TestDatabase;
beforeAll(async () => {
  emulator = await startEmulator();
});
afterAll(() => emulator.stop());
beforeEach(async () => {
  db = await createTestDatabase({ sealed: true });
});
afterEach(() => db.drop());

const queue = () => ({
  url: emulator.queueUrl,
  endpoint: emulator.endpoint,
  region: emulator.region,
  credentials: { accessKeyId: 'test', secretAccessKey: 'test' },
});
const never = new AbortController().signal;

const options = (kek: Settings['kek'], stop: AbortSignal = never) =>
  workerOptions(db, { settings: { ...readSettings({}), kek }, queue: queue(), stop });

const rightKek = () => ({ text: db.kek.toString('hex') });

const stageOne = (body: string) => stageReceived(db, queue(), body);

const ledgerOf = async (batchId: string) =>
  (await db.superuser.query('select * from staging.batches where batch_id = $1', [batchId])).rows[0];
const inFlight = async () => {
  const sqs = createQueueClient(queue(), { maxSockets: 1 });
  const { inFlight: count } = await countMessages(sqs, emulator.queueUrl);
  sqs.destroy();
  return count;
};

test('a batch is masked, its message deleted from the queue, and the batch closed', async () => {
  const batchId = await stageOne(event(1));
  expect(await runWorkerOnce(options(rightKek()))).toMatchObject({ failed: 0 });
  expect(await ledgerOf(batchId)).toMatchObject({ inserted: 1, lost_at: null, acked_at: expect.any(Date) });
  expect(await inFlight()).toBe(0);
});

const pidOf = async (client: pg.PoolClient): Promise<number> =>
  (await client.query<{ pid: number }>('select pg_backend_pid() as pid')).rows[0]!.pid;

/** Runs a worker once and returns the levels of what it says about the batch. */
async function levelsOnceMore(batchId: string): Promise<string[]> {
  await db.superuser.query('select staging.add_mask_job($1)', [batchId]);
  const { log, ...others } = options(rightKek());
  const levels: string[] = [];
  for (const level of ['debug', 'info', 'warn', 'error'] as const) {
    vi.spyOn(log, level).mockImplementation((about: unknown) => {
      if (typeof about === 'object') levels.push(level);
    });
  }
  expect(await runWorkerOnce({ ...others, log })).toMatchObject({ failed: 0, batches: 0 });
  return levels;
}

test('a job for a batch that is acknowledged already is no reason to warn', async () => {
  const batchId = await stageOne(event(1));
  await runWorkerOnce(options(rightKek()));
  expect(await levelsOnceMore(batchId)).toEqual(['debug']);
});

test('a job for a batch whose rows a crash took is', async () => {
  await runWorkerOnce(options(rightKek()));
  const batchId = await stageOne(event(1));
  await db.superuser.query('truncate staging.raw_messages');
  expect(await levelsOnceMore(batchId)).toEqual(['warn']);
});

test('a worker that runs once counts what it did, and leaves nothing of it in staging', async () => {
  await stageOne(event(1));
  await stageOne('no JSON');
  const summary = await runWorkerOnce(options(rightKek()));
  expect(summary).toEqual({
    batches: 2,
    messages: 2,
    loaded: 1,
    duplicates: 0,
    quarantined: 1,
    failed: 0,
    residue: undefined,
  });
  expect((await db.superuser.query('select from staging.raw_messages')).rowCount).toBe(0);
});

test('a running worker empties staging before it ends', async () => {
  const stop = new AbortController();
  const worker = runWorker(options(rightKek(), stop.signal));
  const batchId = await stageOne(event(1));
  await until(async () => (await ledgerOf(batchId)).acked_at !== null);
  stop.abort();
  await worker;
  expect((await db.superuser.query('select from staging.raw_messages')).rowCount).toBe(0);
});

test('a running worker warns of a slot that somebody has held for over a minute', async () => {
  const stop = new AbortController();
  const { log, ...others } = options(rightKek(), stop.signal);
  const warn = vi.spyOn(log, 'warn');
  const worker = runWorker({ ...others, log });
  const batchId = await stageOne(event(1));
  await until(async () => (await ledgerOf(batchId)).acked_at !== null);
  const holder = await db.superuser.connect();
  await holder.query('begin; lock table staging.raw_messages in access share mode');
  await db.pool('worker').query('select staging.recycle_slots(filled_until => clock_timestamp())');
  await db.superuser.query(
    `update staging.slots set closed_at = closed_at - interval '2 minutes' where not is_open`,
  );
  await until(() => warn.mock.calls.length > 0);
  expect(warn.mock.calls).toEqual([[expect.stringContaining(String(await pidOf(holder)))]]);
  await holder.query('rollback');
  holder.release();
  stop.abort();
  await expect(worker).resolves.toBeUndefined();
});

test('a wrong key is refused, ends the worker, and nothing is masked with it', async () => {
  await runWorkerOnce(options(rightKek()));
  await db.superuser.query('select masking.seal()');
  const batchId = await stageOne(event(2));
  const wrong = { text: 'ab'.repeat(32) };
  await expect(runWorker(options(wrong))).rejects.toMatchObject({ name: 'FatalError' });
  expect(await ledgerOf(batchId)).toMatchObject({ masked_at: null });
  expect((await db.superuser.query('select from masking.vault')).rowCount).toBe(0);
  expect((await db.superuser.query('select masking.is_sealed() as sealed')).rows[0].sealed).toBe(true);
  await runWorkerOnce(options(rightKek()));
  expect(await ledgerOf(batchId)).toMatchObject({ inserted: 1 });
});

test.each([true, false])(
  'a worker checks its key when it starts (once: %s), though the database is unsealed',
  async (once) => {
    await runWorkerOnce(options(rightKek()));
    const run = (kek: Settings['kek']) => (once ? runWorkerOnce(options(kek)) : runWorker(options(kek)));
    const wrong = randomBytes(32);
    const file = path.join(mkdtempSync(path.join(tmpdir(), 'kek-')), 'kek');
    writeFileSync(file, wrong.toString('hex'));
    for (const [kek, setting] of [
      [{ text: wrong.toString('hex') }, 'MASKING_KEK'],
      [{ file }, file],
    ] as const) {
      const refusal = await run(kek).catch((error: Error) => error);
      expect(refusal).toMatchObject({ name: 'FatalError' });
      // Which setting, which key it holds, and which one is wanted.
      for (const part of [setting, fingerprintOf(wrong), fingerprintOf(db.kek)])
        expect((refusal as Error).message).toContain(part);
    }
    expect((await db.superuser.query('select masking.is_sealed() as sealed')).rows[0].sealed).toBe(false);
  },
);

test.each([{ text: 'zz' }, { file: '/nonexistent/kek' }])(
  'a key that cannot be read (%j) ends a worker when it starts',
  async (kek) => {
    await runWorkerOnce(options(rightKek()));
    await expect(runWorker(options(kek))).rejects.toMatchObject({ name: 'SettingError' });
    await expect(runWorkerOnce(options(kek))).rejects.toMatchObject({ name: 'SettingError' });
  },
);

test('a worker with a key that was replaced is told when, and which one is wanted', async () => {
  await runWorkerOnce(options(rightKek()));
  const next = randomBytes(32);
  await rewrap(db.pool('custodian'), next);
  const refusal = (await runWorkerOnce(options(rightKek())).catch((error: Error) => error)) as Error;
  expect(refusal).toMatchObject({ name: 'FatalError' });
  const { rows } = await db.superuser.query(
    `select to_char(replaced_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') as at from masking.kek_history where replaced_at is not null`,
  );
  for (const part of [rows[0].at, fingerprintOf(db.kek), fingerprintOf(next)])
    expect(refusal.message).toContain(part);
  expect(await runWorkerOnce(options({ text: next.toString('hex') }))).toMatchObject({ failed: 0 });
});

test('a worker with the former key goes on after a rewrap, also when its connections are cut, until it has to unseal', async () => {
  const stop = new AbortController();
  const worker = runWorker(options(rightKek(), stop.signal));
  const ended = worker.catch((error: Error) => error.name);
  const first = await stageOne(event(8));
  await until(async () => (await ledgerOf(first)).acked_at !== null);
  await rewrap(db.pool('custodian'), randomBytes(32));
  await db.superuser.query(
    `select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and application_name = 'masked-logins worker'`,
    [db.name],
  );
  const second = await stageOne(event(9));
  await until(async () => (await ledgerOf(second)).acked_at !== null);
  await db.superuser.query('select masking.seal()');
  expect(await ended).toBe('FatalError');
});

test('an unsealing by somebody else that is not over does not hang a worker', async () => {
  await runWorkerOnce(options(rightKek()));
  await db.superuser.query('select masking.seal()');
  const other = await openTransaction(db.pool('worker'));
  await copyIn(
    other.client,
    'copy masking.kek_inbox from stdin (format binary)',
    encodeRows([bytea], [[db.kek]]),
  );
  const batchId = await stageOne(event(10));
  expect(await runWorkerOnce(options(rightKek()))).toMatchObject({ failed: 1 });
  await other.client.query('rollback');
  other.client.release();
  await db.superuser.query('update graphile_worker._private_jobs set run_at = now()');
  expect(await runWorkerOnce(options(rightKek()))).toMatchObject({ failed: 0 });
  expect(await ledgerOf(batchId)).toMatchObject({ inserted: 1 });
});

test('a worker without a key says once that the database is sealed', async () => {
  await stageOne(event(11));
  const warnings: unknown[] = [];
  const log = createLogger('silent');
  log.warn = ((...said: unknown[]) => warnings.push(said)) as typeof log.warn;
  await runWorkerOnce({ ...options(undefined), log });
  expect(warnings.filter((said) => /no key/.test(JSON.stringify(said)))).toHaveLength(1);
});

test('without a key a batch waits, and a job tells no more than the batch and a code', async () => {
  const batchId = await stageOne(event(3));
  expect(await runWorkerOnce(options(undefined))).toMatchObject({ failed: 1 });
  const { rows } = await db.superuser.query('select last_error from graphile_worker.jobs where key = $1', [
    `mask_batch:${batchId}`,
  ]);
  expect(rows[0].last_error).toBe(`mask_batch of batch ${batchId} failed: SQLSTATE ML001`);
  await db.superuser.query('update graphile_worker._private_jobs set run_at = now()');
  expect(await runWorkerOnce(options(rightKek()))).toMatchObject({ failed: 0 });
});

test('a running worker goes on after its connections are cut, and stops when told', async () => {
  const stop = new AbortController();
  const worker = runWorker(options(rightKek(), stop.signal));
  const first = await stageOne(event(4));
  await until(async () => (await ledgerOf(first)).acked_at !== null);
  await db.superuser.query(
    `select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and application_name = 'masked-logins worker'`,
    [db.name],
  );
  const second = await stageOne(event(5));
  await until(async () => (await ledgerOf(second)).acked_at !== null);
  stop.abort();
  await expect(worker).resolves.toBeUndefined();
});

test('a database that is sealed while the worker runs is unsealed by its next batch', async () => {
  const stop = new AbortController();
  const worker = runWorker(options(rightKek(), stop.signal));
  const first = await stageOne(event(6));
  await until(async () => (await ledgerOf(first)).acked_at !== null);
  await db.superuser.query('select masking.seal()');
  const second = await stageOne(event(7));
  await until(async () => (await ledgerOf(second)).acked_at !== null);
  stop.abort();
  await expect(worker).resolves.toBeUndefined();
});

test('a login that Postgres refuses ends the worker at once', async () => {
  const url = new URL(db.urls.worker);
  url.password = 'wrong';
  await expect(
    runWorker({ ...options(rightKek()), database: databaseAt(url.toString()) }),
  ).rejects.toMatchObject({ name: 'FatalError' });
});
