import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest';
import { childEnvironment, MASKED_LOGINS } from '../../local/environment.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { REGION, startQueue, type TestQueue } from './loader.ts';

let db: TestDatabase;
let sqs: TestQueue;

beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());
beforeEach(async () => {
  await db.superuser.query('delete from staging.batches');
  sqs = await startQueue();
});
afterEach(() => sqs.stop());

const environment = (more: Record<string, string> = {}) =>
  childEnvironment({
    DATABASE_URL: db.urls.loader,
    SQS_QUEUE_URL: sqs.queue.url,
    AWS_ENDPOINT_URL_SQS: sqs.queue.endpoint!,
    AWS_REGION: REGION,
    AWS_ACCESS_KEY_ID: 'test',
    AWS_SECRET_ACCESS_KEY: 'test',
    SQS_WAIT_TIME_SECONDS: '1',
    ...more,
  });

interface Outcome {
  code: number;
  stdout: string;
  stderr: string;
}

const load = (args: string[], env: NodeJS.ProcessEnv) =>
  new Promise<Outcome>((resolve) => {
    execFile(process.execPath, [MASKED_LOGINS, 'load', ...args], { env }, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });

const stagedRows = async () => {
  const { rows } = await db.superuser.query('select coalesce(sum(rows), 0)::int as n from staging.batches');
  return rows[0].n as number;
};

/** A loader that follows the queue, when it has staged its first message. */
async function startFollowing(more: Record<string, string> = {}): Promise<ChildProcess> {
  sqs.send(1);
  const child = spawn(process.execPath, [MASKED_LOGINS, 'load', '--follow'], {
    env: environment(more),
    stdio: 'ignore',
  });
  await vi.waitFor(async () => expect(await stagedRows()).toBe(1), { timeout: 20_000, interval: 50 });
  return child;
}

test('load empties the queue, prints one line and exits with 0', async () => {
  sqs.send(5);
  const { code, stdout } = await load([], environment());
  expect(code).toBe(0);
  expect(stdout.trim().split('\n')).toHaveLength(1);
  expect(await stagedRows()).toBe(5);
});

test('load --json prints the summary as an object', async () => {
  sqs.send(3);
  const { stdout } = await load(['--json'], environment());
  expect(JSON.parse(stdout)).toEqual({
    received: 3,
    redelivered: 0,
    staged: 3,
    batches: expect.any(Number),
    released: 0,
    seconds: expect.any(Number),
    exitCode: 0,
  });
});

test('a FIFO queue is refused with exit code 2, and nothing is asked of it', async () => {
  const { code, stderr } = await load([], environment({ SQS_QUEUE_URL: `${sqs.queue.url}.fifo` }));
  expect(code).toBe(2);
  expect(stderr.trim().split('\n')).toHaveLength(1);
});

test('without a database and without a local stack it exits with 2', async () => {
  expect((await load([], environment({ DATABASE_URL: '' }))).code).toBe(2);
});

test('a queue that does not exist is one line and exit code 1', async () => {
  const { code, stderr } = await load([], environment({ SQS_QUEUE_URL: `${sqs.queue.url}-other` }));
  expect(code).toBe(1);
  expect(stderr.trim().split('\n')).toHaveLength(1);
});

test.each<NodeJS.Signals>(['SIGTERM', 'SIGINT'])(
  'load --follow goes on until %s, and exits with 0',
  async (signal) => {
    const child = await startFollowing();
    child.kill(signal);
    // Ctrl-C under npm arrives twice.
    child.kill(signal);
    expect(await once(child, 'exit')).toEqual([0, null]);
  },
);

test('a second signal does not wait for the poll under way, and exits with 1', async () => {
  const child = await startFollowing({ SQS_WAIT_TIME_SECONDS: '20' });
  const exit = once(child, 'exit');
  await vi.waitFor(
    () => {
      child.kill('SIGTERM');
      expect(child.exitCode).not.toBeNull();
    },
    { timeout: 10_000, interval: 100 },
  );
  expect(await exit).toEqual([1, null]);
});

test('nothing of a message is in what load prints, whatever its level', async () => {
  const body = '{"user_id":"u","ip":"203.0.113.77","device_id":"593-47-5928"}';
  sqs.server.sendMessage('login-queue', body, { region: REGION });
  const { stdout, stderr } = await load([], environment({ LOG_LEVEL: 'trace' }));
  expect(await stagedRows()).toBe(1);
  for (const part of ['203.0.113.77', '593-47-5928']) expect(stdout + stderr).not.toContain(part);
});
