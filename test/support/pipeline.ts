import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { SendMessageBatchCommand, SQSClient } from '@aws-sdk/client-sqs';
import type pg from 'pg';
import { childEnvironment } from '../../local/environment.ts';
import { createPool } from '../../src/database/pool.ts';
import { startStack, type Stack } from '../../local/stack/stack.ts';
import { createLogger } from '../../src/log.ts';
import { makeTestDirectory, removeTestDirectory } from './test-directory.ts';

const ROOT = path.join(import.meta.dirname, '../..');
const POLL_MS = 50;

/** A stack for one test, and commands that run on it as child processes. */
export interface Pipeline {
  stack: Stack;
  superuser: pg.Pool;
  /** Starts `masked-logins <command>` on the stack. */
  run(command: string, args?: string[], variables?: Record<string, string>): Run;
  send(bodies: readonly string[]): Promise<string[]>;
  stop(): Promise<void>;
}

export interface Run {
  process: ChildProcess;
  /** Everything that the command has printed so far. */
  output(): string;
  /** The exit code, or the signal that ended the process. */
  ended: Promise<number | string>;
}

export async function startPipeline(): Promise<Pipeline> {
  const localDir = makeTestDirectory();
  const stack = await startStack({ localDir, persistent: false, log: createLogger('silent') });
  const superuser = createPool(stack.file.urls.superuser, { max: 2, applicationName: 'test' });
  const client = new SQSClient({
    endpoint: stack.file.endpoint,
    region: stack.file.region,
    credentials: { accessKeyId: 'test', secretAccessKey: 'test' },
  });
  const running = new Set<ChildProcess>();
  return {
    stack,
    superuser,
    run(command, args = [], variables = {}) {
      const child = spawn(process.execPath, [path.join(ROOT, 'local/on-stack.ts'), command, ...args], {
        cwd: ROOT,
        env: childEnvironment({ LOCAL_DIR: localDir, ...variables }),
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      let output = '';
      child.stdout.on('data', (chunk) => (output += String(chunk)));
      child.stderr.on('data', (chunk) => (output += String(chunk)));
      running.add(child);
      const ended = once(child, 'close').then(([code, signal]) => {
        running.delete(child);
        return (code ?? signal) as number | string;
      });
      return { process: child, output: () => output, ended };
    },
    async send(bodies) {
      const ids: string[] = [];
      for (let at = 0; at < bodies.length; at += 10) {
        const Entries = bodies
          .slice(at, at + 10)
          .map((MessageBody, index) => ({ Id: String(index), MessageBody }));
        const { Successful = [] } = await client.send(
          new SendMessageBatchCommand({ QueueUrl: stack.file.queueUrl, Entries }),
        );
        ids.push(...Successful.map(({ MessageId }) => MessageId!));
      }
      return ids;
    },
    async stop() {
      for (const child of running) child.kill('SIGKILL');
      client.destroy();
      await superuser.end();
      await stack.stop();
      await removeTestDirectory(localDir);
    },
  };
}

/**
 * Waits until a condition is true. If checking it fails (because Postgres is down), the condition counts as false.
 *
 * @param timeoutMs long enough that only a hang reaches it
 */
export async function until(condition: () => Promise<boolean> | boolean, timeoutMs = 120_000): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!(await Promise.resolve(condition()).catch(() => false))) {
    if (performance.now() > deadline) throw new Error('the condition did not become true in time');
    await sleep(POLL_MS);
  }
}

/** The message ids of all rows in user_logins and in quarantine. */
export async function storedIds(superuser: pg.Pool): Promise<{ loaded: string[]; quarantined: string[] }> {
  const loaded = await superuser.query<{ id: string }>('select message_id as id from public.user_logins');
  const quarantined = await superuser.query<{ id: string }>(
    'select message_id as id from staging.quarantine',
  );
  return { loaded: loaded.rows.map(({ id }) => id), quarantined: quarantined.rows.map(({ id }) => id) };
}
