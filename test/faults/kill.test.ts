import { afterEach, beforeEach, expect, test } from 'vitest';
import { events } from '../support/bodies.ts';
import { startPipeline, until, storedIds, type Pipeline } from '../support/pipeline.ts';

/** Short timeouts: messages that a crash leaves in flight are delivered again during the test. */
const QUICK = { SQS_VISIBILITY_TIMEOUT_SECONDS: '5', SQS_WAIT_TIME_SECONDS: '1', LOAD_BATCH_ROWS: '500' };

let pipeline: Pipeline;
beforeEach(async () => {
  pipeline = await startPipeline();
});
afterEach(() => pipeline.stop());

const count = async (relation: string): Promise<number> =>
  Number((await pipeline.superuser.query(`select count(*) from ${relation}`)).rows[0].count);
const queueIsEmpty = async (): Promise<boolean> => {
  const status = pipeline.run('status', ['--json']);
  await status.ended;
  const { queue } = JSON.parse(status.output());
  return queue.visible === 0 && queue.inFlight === 0;
};

/** Expects each message in exactly one table, once, and no other messages. */
async function expectEachOnce(ids: string[], malformed: number): Promise<void> {
  const { loaded, quarantined } = await storedIds(pipeline.superuser);
  expect(quarantined).toHaveLength(malformed);
  expect([...loaded, ...quarantined].sort()).toEqual([...ids].sort());
}

test('killing Postgres during loading and masking neither loses nor duplicates messages, and needs no intervention', async () => {
  const ids = await pipeline.send(events(6_000));
  const loader = pipeline.run('load', ['--follow'], QUICK);
  const worker = pipeline.run('worker', [], QUICK);

  for (const progress of [500, 2_000, 4_000]) {
    await until(async () => (await count('public.user_logins')) >= progress);
    pipeline.stack.postgres.kill('SIGKILL');
  }

  await until(
    async () => (await count('public.user_logins')) + (await count('staging.quarantine')) >= ids.length,
  );
  await until(queueIsEmpty);
  await expectEachOnce(ids, 120);
  expect(loader.process.exitCode).toBeNull();
  expect(worker.process.exitCode).toBeNull();
});

test('killing loader and worker neither loses nor duplicates messages, once they run again', async () => {
  const ids = await pipeline.send(events(6_000));
  for (const progress of [500, 2_500]) {
    const loader = pipeline.run('load', ['--follow'], QUICK);
    const worker = pipeline.run('worker', [], QUICK);
    await until(async () => (await count('public.user_logins')) >= progress);
    loader.process.kill('SIGKILL');
    worker.process.kill('SIGKILL');
    await Promise.all([loader.ended, worker.ended]);
  }
  pipeline.run('load', ['--follow'], QUICK);
  pipeline.run('worker', [], QUICK);

  await until(
    async () => (await count('public.user_logins')) + (await count('staging.quarantine')) >= ids.length,
  );
  await until(queueIsEmpty);
  await expectEachOnce(ids, 120);
});

test('SIGTERM ends loader and worker with exit code 0 and leaves no message in flight', async () => {
  const ids = await pipeline.send(events(3_000));
  const loader = pipeline.run('load', ['--follow'], QUICK);
  const worker = pipeline.run('worker', [], QUICK);
  await until(async () => (await count('public.user_logins')) >= 500);

  loader.process.kill('SIGTERM');
  expect(await loader.ended).toBe(0);
  await until(async () => (await count('staging.batches where acked_at is null')) === 0);
  worker.process.kill('SIGTERM');
  expect(await worker.ended).toBe(0);

  const status = pipeline.run('status', ['--json']);
  expect(await status.ended).toBe(0);
  const { queue, loaded, quarantined } = JSON.parse(status.output());
  expect(queue.inFlight).toBe(0);
  expect(loaded + quarantined.total + queue.visible).toBe(ids.length);
});
