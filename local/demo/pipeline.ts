import { setTimeout as sleep } from 'node:timers/promises';
import type { SQSClient } from '@aws-sdk/client-sqs';
import { SingleBar } from 'cli-progress';
import type pg from 'pg';
import { childEnvironment, databaseSettings, queueOf, queueSettings } from '../environment.ts';
import { withClient } from '../postgres/client.ts';
import { FatalError } from '../../src/errors.ts';
import { createQueueClient } from '../../src/queue/client.ts';
import { countMessages } from '../../src/queue/counts.ts';
import { sendEvents } from '../send/send.ts';
import { Child } from './child.ts';
import { rowOf } from './database.ts';
import type { StackLogin } from '../stack/logins.ts';
import type { Stack } from '../stack/stack.ts';

/** Requests to the queue at the same time. */
const SOCKETS = 8;
/** How often to read the progress from the database, in milliseconds. */
const READ_EVERY_MS = 100;
/** The demo fails if there is no progress for this long, in milliseconds. */
const STANDSTILL_MS = 60_000;

/** How far masking and rotations are. */
interface Progress {
  masked: number;
  rotating: number;
  rotated: number;
}

/** Sends bodies to the stack's queue. Returns how many were sent. */
export function send(stack: Stack, bodies: Iterable<string>, signal: AbortSignal): Promise<number> {
  return withQueue(stack, async (client, queueUrl) => {
    const { sent } = await sendEvents({ client, queueUrl, bodies, signal });
    signal.throwIfAborted();
    return sent;
  });
}

/** How many messages are left in the queue. */
export function leftInQueue(stack: Stack): Promise<number> {
  return withQueue(stack, async (client, queueUrl) => {
    const { visible, inFlight } = await countMessages(client, queueUrl);
    return visible + inFlight;
  });
}

async function withQueue<T>(
  { file }: Stack,
  use: (client: SQSClient, queueUrl: string) => Promise<T>,
): Promise<T> {
  const client = createQueueClient(queueOf(file), { maxSockets: SOCKETS });
  try {
    return await use(client, file.queueUrl);
  } finally {
    client.destroy();
  }
}

/**
 * Runs loader and worker as in production, as processes that know only their environment, until all events are masked
 * and no rotation is running.
 *
 * @param options.total how many events are sent in total since the stack started
 * @param options.meanwhile called after each reading of the progress
 * @throws {FatalError} if one of them fails, or there is no progress
 */
export async function loadAndMask(options: {
  stack: Stack;
  total: number;
  signal: AbortSignal;
  meanwhile?: () => Promise<void>;
}): Promise<void> {
  const { stack, total, signal, meanwhile } = options;
  const environment = (login: StackLogin) =>
    childEnvironment({
      ...databaseSettings(stack.file, login),
      ...queueSettings(stack.file),
      LOG_LEVEL: 'warn',
      SQS_WAIT_TIME_SECONDS: '1',
    });
  const loader = new Child('load', environment('loader'));
  const worker = new Child('worker', environment('worker'));
  const bar = new SingleBar({
    format: 'Masking {bar} {value}/{total}',
    hideCursor: true,
    noTTYOutput: false,
  });
  try {
    await withClient(stack.file.urls.auditor, async (database) => {
      let progress: Progress = { masked: 0, rotating: 0, rotated: 0 };
      let movedAt = Date.now();
      bar.start(total, 0);
      while (progress.masked < total || progress.rotating > 0) {
        await sleep(READ_EVERY_MS);
        signal.throwIfAborted();
        loader.throwIfFailed();
        worker.throwIfFailed();
        const now = await progressOf(database);
        if (now.masked + now.rotated > progress.masked + progress.rotated) movedAt = Date.now();
        if (Date.now() - movedAt > STANDSTILL_MS)
          throw new FatalError(`the demo made no progress for ${STANDSTILL_MS / 1_000} s`);
        progress = now;
        bar.update(progress.masked);
        await meanwhile?.();
      }
    });
    // The loader ends by itself when the queue stays empty. The worker ends when it is stopped.
    await loader.end();
    worker.stop();
    await worker.end();
  } finally {
    bar.stop();
    loader.stop();
    worker.stop();
    await Promise.allSettled([loader.ended, worker.ended]);
  }
}

async function progressOf(database: pg.Client): Promise<Progress> {
  const row = await rowOf<Record<keyof Progress, string>>(
    database,
    `select (select coalesce(sum(inserted + quarantined), 0) from staging.batches) as masked,
            (select count(*) from masking.rotations where state <> 'done') as rotating,
            (select coalesce(sum(rows_done), 0) from masking.rotations) as rotated`,
  );
  return { masked: Number(row.masked), rotating: Number(row.rotating), rotated: Number(row.rotated) };
}
