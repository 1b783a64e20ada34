/** Raw messages leave the disk although the last worker ends early: by itself, told to, killed, or held up by a lock. */
import { randomUUID } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { event, events } from '../support/bodies.ts';
import { createPool } from '../../src/database/pool.ts';
import { startPipeline, until, type Pipeline, type Run } from '../support/pipeline.ts';

// Whole stacks and several processes, on a machine that may be busy.
vi.setConfig({ testTimeout: 300_000, hookTimeout: 120_000 });

let pipeline: Pipeline;
beforeEach(async () => {
  pipeline = await startPipeline();
  await pipeline.superuser.query('create extension pg_buffercache schema public');
});
afterEach(() => pipeline.stop());

/** Files of the data directory that hold it, those of unlogged tables included. */
function filesWith(words: string): string[] {
  const directory = pipeline.stack.file.dataDirectory;
  return readdirSync(directory, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.join(entry.parentPath, entry.name))
    .filter((file) => readFileSync(file).includes(words));
}

const number = async (query: string): Promise<number> =>
  Number((await pipeline.superuser.query<{ n: string }>(`select (${query}) as n`)).rows[0]!.n);
/** Writes to the files what is on its way there; a checkpoint leaves unlogged tables in memory. */
const flush = () =>
  pipeline.superuser.query(
    `checkpoint;
     select public.pg_buffercache_evict_relation(c.oid) from pg_class c
      where c.oid::regclass::text like 'staging.raw_messages%' and c.relkind = 'r'`,
  );
const WAITING = `select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%mask_batch%'`;
const staged = () => number('select count(*) from staging.raw_messages');
const acknowledged = () => number('select count(*) from staging.batches where acked_at is not null');

/** A canary on its way through the queue and into staging, among others. */
async function load(count = 20): Promise<string> {
  const canary = `residue-${randomUUID()}`;
  await pipeline.send([event(1, { note: canary }), ...events(count - 1)]);
  expect(await pipeline.run('load').ended).toBe(0);
  await flush();
  expect(filesWith(canary).length).toBeGreaterThan(0);
  return canary;
}

async function expectNothingLeft(canary: string): Promise<void> {
  expect(await staged()).toBe(0);
  await flush();
  expect(filesWith(canary)).toEqual([]);
}

/** Runs a worker until it has acknowledged everything; then it still runs. */
async function startAndAcknowledge(variables: Record<string, string> = {}): Promise<Run> {
  const worker = pipeline.run('worker', [], variables);
  await until(async () => (await acknowledged()) > 0);
  expect(await staged()).toBeGreaterThan(0);
  return worker;
}

/** A session of somebody who holds a slot in an open transaction. */
async function hold(): Promise<{ pid: number; release: () => Promise<void> }> {
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

test('load and then a worker that runs once leave no body on the disk, and the worker says what it did', async () => {
  const canary = await load();
  const worker = pipeline.run('worker', ['--once']);
  expect(await worker.ended).toBe(0);
  await expectNothingLeft(canary);
  expect(worker.output()).toMatch(/\b20 messages\b/);
});

test('a worker that runs once leaves none although a loader holds a lock on its inbox', async () => {
  const canary = await load();
  const loader = createPool(pipeline.stack.file.urls.loader, { max: 1, applicationName: 'test' });
  const client = await loader.connect();
  await client.query('begin; lock table staging.inbox in row exclusive mode');
  expect(await pipeline.run('worker', ['--once']).ended).toBe(0);
  await expectNothingLeft(canary);
  client.release(true);
  await loader.end();
});

test('the last worker, told to stop, leaves none', async () => {
  const canary = await load();
  const worker = await startAndAcknowledge();
  worker.process.kill('SIGTERM');
  expect(await worker.ended).toBe(0);
  await expectNothingLeft(canary);
});

test('a worker that is told to stop while it runs once leaves none of what is acknowledged, and keeps the rest', async () => {
  const canary = await load();
  await load(10);
  await load(10);
  // The second of three batches waits for its row in the ledger, so that the signal finds the worker at work.
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
  expect(filesWith(canary)).toEqual([]);
});

test('a worker clears what one that was killed has left, before it looks for jobs', async () => {
  const canary = await load();
  const killed = await startAndAcknowledge();
  killed.process.kill('SIGKILL');
  expect(await killed.ended).toBe('SIGKILL');
  expect(await staged()).toBeGreaterThan(0);
  const next = pipeline.run('worker');
  await until(() => next.output().includes('looking for jobs'));
  await expectNothingLeft(canary);
});

test('a worker that runs once and cannot empty a slot names who holds it, fails, and the next one does it', async () => {
  const canary = await load();
  const holder = await hold();
  const worker = pipeline.run('worker', ['--once'], {
    SHUTDOWN_GRACE_SECONDS: '3',
    SQS_WAIT_TIME_SECONDS: '1',
  });
  expect(await worker.ended).toBe(1);
  expect(worker.output()).toContain(String(holder.pid));
  expect(worker.output()).not.toMatch(/access share/i);
  expect(filesWith(canary).length).toBeGreaterThan(0);
  await holder.release();
  expect(await pipeline.run('worker', ['--once']).ended).toBe(0);
  await expectNothingLeft(canary);
});

test('a worker that is told to stop and cannot empty a slot says so in time, and fails', async () => {
  const canary = await load();
  const holder = await hold();
  const worker = await startAndAcknowledge({ SHUTDOWN_GRACE_SECONDS: '4', SQS_WAIT_TIME_SECONDS: '1' });
  worker.process.kill('SIGTERM');
  expect(await worker.ended).toBe(1);
  expect(worker.output()).toContain(String(holder.pid));
  await holder.release();
  expect(filesWith(canary).length).toBeGreaterThan(0);
});
