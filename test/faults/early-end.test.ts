/** Raw messages leave the disk although the last worker ends early: by --once, by a signal, or while a lock is held. */
import { randomUUID } from 'node:crypto';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { filesHolding } from '../support/files-holding.ts';
import { event, events } from '../support/bodies.ts';
import { createPool } from '../../src/database/pool.ts';
import { startPipeline, until, type Pipeline, type Run } from '../support/pipeline.ts';

// Each test starts a stack and several processes, on a machine that may be busy.
vi.setConfig({ testTimeout: 300_000, hookTimeout: 120_000 });

let pipeline: Pipeline;
beforeEach(async () => {
  pipeline = await startPipeline();
  await pipeline.superuser.query('create extension pg_buffercache schema public');
});
afterEach(() => pipeline.stop());

const number = async (query: string): Promise<number> =>
  Number((await pipeline.superuser.query<{ n: string }>(`select (${query}) as n`)).rows[0]!.n);
/** Writes all changes to the files. A checkpoint alone leaves pages of unlogged tables in memory. */
const flush = () =>
  pipeline.superuser.query(
    `checkpoint;
     select public.pg_buffercache_evict_relation(c.oid) from pg_class c
      where c.oid::regclass::text like 'staging.raw_messages%' and c.relkind = 'r'`,
  );
const WAITING = `select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%mask_batch%'`;
const staged = () => number('select count(*) from staging.raw_messages');
const acknowledged = () => number('select count(*) from staging.batches where acked_at is not null');

/** Sends messages, one of them with a canary, and loads them into staging. Returns the canary. */
async function loadCanary(count = 20): Promise<string> {
  const canary = `residue-${randomUUID()}`;
  await pipeline.send([event(1, { note: canary }), ...events(count - 1)]);
  expect(await pipeline.run('load').ended).toBe(0);
  await flush();
  expect(filesHolding(pipeline.stack.file.dataDirectory, [canary]).length).toBeGreaterThan(0);
  return canary;
}

async function expectNothingLeft(canary: string): Promise<void> {
  expect(await staged()).toBe(0);
  await flush();
  expect(filesHolding(pipeline.stack.file.dataDirectory, [canary])).toEqual([]);
}

/** Starts a worker, and waits until it has acknowledged a batch. The worker still runs afterwards. */
async function startAndAcknowledge(variables: Record<string, string> = {}): Promise<Run> {
  const worker = pipeline.run('worker', [], variables);
  await until(async () => (await acknowledged()) > 0);
  expect(await staged()).toBeGreaterThan(0);
  return worker;
}

/** Opens a transaction that holds a lock on a slot. */
async function holdSlot(): Promise<{ pid: number; release: () => Promise<void> }> {
  const client = await pipeline.superuser.connect();
  await client.query('begin; lock table staging.raw_messages_0 in access share mode');
  const { rows } = await client.query<{ pid: number }>('select pg_backend_pid() as pid');
  return {
    pid: rows[0]!.pid,
    release: async () => {
      await client.query('commit');
      client.release();
    },
  };
}

test('after load and worker --once, no body is on the disk, and the worker has printed a summary', async () => {
  const canary = await loadCanary();
  const worker = pipeline.run('worker', ['--once']);
  expect(await worker.ended).toBe(0);
  await expectNothingLeft(canary);
  expect(worker.output()).toMatch(/\b20 messages\b/);
});

test('worker --once leaves no body on the disk although a loader holds a lock on the inbox', async () => {
  const canary = await loadCanary();
  const loader = createPool(pipeline.stack.file.urls.loader, { max: 1, applicationName: 'test' });
  const client = await loader.connect();
  await client.query('begin; lock table staging.inbox in row exclusive mode');
  expect(await pipeline.run('worker', ['--once']).ended).toBe(0);
  await expectNothingLeft(canary);
  client.release(true);
  await loader.end();
});

test('the last worker leaves no body on the disk after SIGTERM', async () => {
  const canary = await loadCanary();
  const worker = await startAndAcknowledge();
  worker.process.kill('SIGTERM');
  expect(await worker.ended).toBe(0);
  await expectNothingLeft(canary);
});

test('after SIGTERM, worker --once removes the acknowledged bodies from the disk and keeps the others', async () => {
  const canary = await loadCanary();
  await loadCanary(10);
  await loadCanary(10);
  // Masking of the second of three batches waits for its row in the ledger. The signal arrives in the meantime.
  const client = await pipeline.superuser.connect();
  await client.query(
    `begin;
     select from staging.batches
      where batch_id = (select batch_id from staging.batches order by staged_at offset 1 limit 1) for update`,
  );
  const worker = pipeline.run('worker', ['--once'], { WORKER_CONCURRENCY: '1' });
  await until(async () => (await acknowledged()) === 1);
  await until(async () => (await number(WAITING)) === 1);
  worker.process.kill('SIGTERM');
  await until(() => worker.output().includes('stopping'));
  await client.query('rollback');
  client.release();
  expect(await worker.ended).toBe(1);
  expect(await acknowledged()).toBe(2);
  expect(await staged()).toBe(10);
  await flush();
  expect(filesHolding(pipeline.stack.file.dataDirectory, [canary])).toEqual([]);
});

test('a worker removes the bodies that a killed worker left, before it looks for jobs', async () => {
  const canary = await loadCanary();
  const killed = await startAndAcknowledge();
  killed.process.kill('SIGKILL');
  expect(await killed.ended).toBe('SIGKILL');
  expect(await staged()).toBeGreaterThan(0);
  const next = pipeline.run('worker');
  await until(() => next.output().includes('looking for jobs'));
  await expectNothingLeft(canary);
});

test('worker --once that cannot empty a slot names the process that holds it and fails; the next one empties it', async () => {
  const canary = await loadCanary();
  const holder = await holdSlot();
  const worker = pipeline.run('worker', ['--once'], {
    SHUTDOWN_GRACE_SECONDS: '3',
    SQS_WAIT_TIME_SECONDS: '1',
  });
  expect(await worker.ended).toBe(1);
  expect(worker.output()).toContain(String(holder.pid));
  expect(worker.output()).not.toMatch(/access share/i);
  expect(filesHolding(pipeline.stack.file.dataDirectory, [canary]).length).toBeGreaterThan(0);
  await holder.release();
  expect(await pipeline.run('worker', ['--once']).ended).toBe(0);
  await expectNothingLeft(canary);
});

test('a worker that cannot empty a slot after SIGTERM reports it in time and fails', async () => {
  const canary = await loadCanary();
  const holder = await holdSlot();
  const worker = await startAndAcknowledge({ SHUTDOWN_GRACE_SECONDS: '4', SQS_WAIT_TIME_SECONDS: '1' });
  worker.process.kill('SIGTERM');
  expect(await worker.ended).toBe(1);
  expect(worker.output()).toContain(String(holder.pid));
  await holder.release();
  expect(filesHolding(pipeline.stack.file.dataDirectory, [canary]).length).toBeGreaterThan(0);
});
