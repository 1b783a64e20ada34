import { setTimeout as sleep } from 'node:timers/promises';
import { SingleBar } from 'cli-progress';
import type pg from 'pg';
import { childEnvironment, databaseSettings, queueSettings } from '../environment.ts';
import { FatalError } from '../../src/errors.ts';
import { createQueueClient } from '../../src/queue/client.ts';
import { countMessages } from '../../src/queue/counts.ts';
import { sendEvents } from '../send/send.ts';
import { Child } from './child.ts';
import { rowOf, withClient } from './database.ts';
import type { StackLogin } from '../stack/logins.ts';
import type { Stack } from '../stack/stack.ts';

/** How often the database is asked how far it is, in milliseconds. */
const LOOK_EVERY_MS = 100;
/** How long nothing may move before the demo counts as failed, in milliseconds. */
const STANDSTILL_MS = 60_000;

/** How far loading and rotations are. */
interface Progress {
  masked: number;
  rotating: number;
  rotated: number;
}

/** Sends bodies to the stack's queue; returns how many. */
export async function send(stack: Stack, bodies: Iterable<string>, signal: AbortSignal): Promise<number> {
  const client = createQueueClient(queueOf(stack), { maxSockets: 8 });
  try {
    const { sent } = await sendEvents({ client, queueUrl: stack.file.queueUrl, bodies, signal });
    signal.throwIfAborted();
    return sent;
  } finally {
    client.destroy();
  }
}

/** How many messages the queue still has. */
export async function leftInQueue(stack: Stack): Promise<number> {
  const client = createQueueClient(queueOf(stack), { maxSockets: 1 });
  try {
    const { visible, inFlight } = await countMessages(client, stack.file.queueUrl);
    return visible + inFlight;
  } finally {
    client.destroy();
  }
}

/**
 * Runs loader and worker as in production, as processes that know no more than their environment, until everything
 * that was sent is masked and no rotation is under way.
 *
 * @param options.total how many events have been sent since the stack started, or will have been
 * @param options.meanwhile called every now and then
 * @throws {FatalError} where one of them fails, or nothing moves
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
        await sleep(LOOK_EVERY_MS);
        signal.throwIfAborted();
        loader.throwIfFailed();
        worker.throwIfFailed();
        const now = await progressOf(database);
        if (now.masked + now.rotated > progress.masked + progress.rotated) movedAt = Date.now();
        if (Date.now() - movedAt > STANDSTILL_MS) throw new FatalError('the demo has come to a standstill');
        progress = now;
        bar.update(progress.masked);
        await meanwhile?.();
      }
    });
    // The loader ends by itself once the queue stays empty, and the worker when it is told to.
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

function queueOf({ file }: Stack) {
  const credentials = { accessKeyId: 'local', secretAccessKey: 'local' };
  return { url: file.queueUrl, endpoint: file.endpoint, region: file.region, credentials };
}
