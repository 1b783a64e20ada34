import type { QueueSettings, Settings } from '../config.ts';
import { checkDatabase } from '../database/check.ts';
import { createPool } from '../database/pool.ts';
import { refuseTransactionPooling } from '../database/pooler.ts';
import type { DatabaseSettings } from '../database/url.ts';
import { describe, FatalError, isOurs } from '../errors.ts';
import { explain } from '../explain.ts';
import type { Logger } from '../log.ts';
import { createQueueClient } from '../queue/client.ts';
import { backoffMs, Throttle } from '../retry.ts';
import { aborted, onAbort, pause, within } from '../wait.ts';
import { clearStaging, describeResidue, type Residue } from './clear-staging.ts';
import { beat, makeBatchesDue, startHeartbeat, type Heartbeat } from './heartbeat.ts';
import { EXTRA_CONNECTIONS, runUntilIdle, startRunners } from './runner.ts';
import type { Done, WorkContext, WorkerTask } from './task.ts';
import { addUpkeep } from './tasks.ts';
import { checkKek } from './unseal.ts';

/** The waits before a worker that broke is rebuilt. */
const BACKOFF = { firstMs: 250, ceilingMs: 5_000 };
/** A worker that ran for this long did not fail at its start, in milliseconds. */
const SOUND_RUN_MS = 5_000;
/** How long to wait for runners and connections that hang while they are closed, in milliseconds. */
const CLOSE_MS = 5_000;
/** DeleteMessageBatch requests at once, over all jobs. */
const SQS_SOCKETS = 16;
/** How often a failure is logged while it lasts, in milliseconds. */
const WARN_EVERY_MS = 30_000;
/** How long a worker waits at its start for slots of staging that another session holds, in milliseconds. */
const CLEAR_AT_START_MS = 2_000;
/** The part of SHUTDOWN_GRACE_SECONDS that is kept for the end of the process, in milliseconds. */
const MARGIN_MS = 1_000;
/** The worker ends after this many failures in a row that no retry can fix. */
const FATAL_IN_A_ROW = 3;

export interface WorkerOptions {
  settings: Settings;
  database: DatabaseSettings;
  queue: QueueSettings;
  log: Logger;
  /** Aborted when the worker is to finish its jobs and end. */
  stop: AbortSignal;
  tasks: readonly WorkerTask[];
}

/**
 * Works until it is stopped, then empties staging. If something breaks (Postgres restarts, a connection is lost,
 * graphile-worker gives up), it rebuilds its connections and runners in the same process.
 *
 * @throws {FatalError} an error that no retry can fix; the message says what to do
 */
export async function runWorker(options: WorkerOptions): Promise<void> {
  const { log, stop } = options;
  const stoppedAt = timeOf(stop);
  const stopped = aborted(stop);
  const formerIds: string[] = [];
  const warnings = new Throttle(WARN_EVERY_MS);
  let kekIsRight = false;
  let failures = 0;
  let fatalInARow = 0;
  while (!stop.aborted) {
    const startedAt = Date.now();
    try {
      await withContext(options, async (context) => {
        await checkConnection(context, options);
        // Once in a process: after a rewrap, a worker with the old key works on until it has to unseal.
        if (!kekIsRight) await checkKek(context);
        kekIsRight = true;
        await workUntilBroken(context, options, formerIds, stopped);
      });
      fatalInARow = 0;
    } catch (error) {
      if (isOurs(error)) throw error;
      const fault = explain(error, { command: 'worker', database: options.database });
      fatalInARow = fault.fatal ? fatalInARow + 1 : 0;
      // A server that is restarting refuses for a moment what it accepts a second later.
      const isFirst = failures === 0 && !kekIsRight;
      if (fault.fatal && (isFirst || fatalInARow >= FATAL_IN_A_ROW)) throw new FatalError(fault.text);
      if (warnings.pass(fault.text))
        log.warn({ attempts: failures + 1 }, `the worker cannot work and tries again: ${fault.text}`);
    }
    failures = Date.now() - startedAt > SOUND_RUN_MS ? 1 : failures + 1;
    await pause(backoffMs(failures, BACKOFF), stop);
  }
  await withContext(options, async (context) => {
    const residue = await clearAtEnd(context, options, stoppedAt()).catch((error: unknown) => {
      log.warn(`staging was not emptied (${describe(error)}): the next worker empties it at its start`);
    });
    if (residue !== undefined) throw new FatalError(describeResidue(residue));
  });
}

/** What a worker that ran once has done. */
export interface OnceSummary extends Done {
  /** How many runs of jobs failed. The next worker runs them again. */
  failed: number;
  /** What is acknowledged and still on the disk, because another session holds a lock. */
  residue: Residue | undefined;
}

/** Works until no job is due or it is stopped, then empties staging. */
export function runWorkerOnce(options: WorkerOptions): Promise<OnceSummary> {
  const stoppedAt = timeOf(options.stop);
  return withContext(options, async (context) => {
    await checkConnection(context, options);
    await checkKek(context);
    await clearAtStart(context);
    await beat(context, [`once-${process.pid}`]);
    // Whoever runs a worker once does not want to wait for jobs that are backing off.
    await makeBatchesDue(context);
    await addUpkeep(context.pool, options.tasks);
    const heartbeats: Heartbeat[] = [];
    const [work] = await Promise.allSettled([
      runUntilIdle(context, options.tasks, options.settings.workerConcurrency, options.stop, (id) => {
        heartbeats.push(startHeartbeat(context, [id]));
      }),
    ]);
    for (const heartbeat of heartbeats) heartbeat.stop();
    const residue = await clearAtEnd(context, options, stoppedAt());
    if (work.status === 'rejected') throw work.reason;
    return { ...context.done, ...work.value, residue };
  });
}

async function checkConnection({ pool }: WorkContext, { database }: WorkerOptions): Promise<void> {
  await refuseTransactionPooling(pool, database.display);
  await checkDatabase(pool);
}

/** Empties staging of what a killed worker left. */
async function clearAtStart({ pool, log }: WorkContext): Promise<void> {
  const residue = await clearStaging(pool, CLEAR_AT_START_MS);
  if (residue !== undefined) log.warn(describeResidue(residue));
}

/** Empties staging in what is left of SHUTDOWN_GRACE_SECONDS, or in all of it if the worker was not stopped. */
function clearAtEnd(
  { pool }: WorkContext,
  { settings }: WorkerOptions,
  stoppedAt: number | undefined,
): Promise<Residue | undefined> {
  const elapsed = stoppedAt === undefined ? 0 : performance.now() - stoppedAt;
  return clearStaging(pool, settings.shutdownGraceSeconds * 1_000 - MARGIN_MS - elapsed);
}

/** When the worker was stopped, by `performance.now()`; undefined until then. */
function timeOf(stop: AbortSignal): () => number | undefined {
  let stoppedAt: number | undefined;
  onAbort(stop, () => {
    stoppedAt = performance.now();
  });
  return () => stoppedAt;
}

async function workUntilBroken(
  context: WorkContext,
  options: WorkerOptions,
  formerIds: string[],
  stopped: Promise<void>,
): Promise<void> {
  if (formerIds.length === 0) await clearAtStart(context);
  const runners = await startRunners(context, options.tasks, options.settings.workerConcurrency);
  const heartbeat = startHeartbeat(context, runners.ids);
  try {
    // Release at once the jobs that this process locked before it broke. Other workers would wait for heartbeats.
    if (formerIds.length > 0) {
      await context.pool.query('select graphile_worker.force_unlock_workers($1::text[])', [formerIds]);
      // Not earlier: if the query fails, the next attempt needs them.
      formerIds.length = 0;
    }
    await beat(context, runners.ids);
    context.log.info({ concurrency: options.settings.workerConcurrency }, 'the worker is looking for jobs');
    const error = await Promise.race([runners.ended, heartbeat.fatal, stopped]);
    if (!options.stop.aborted) throw error ?? new Error('graphile-worker ended by itself');
  } finally {
    heartbeat.stop();
    formerIds.push(...runners.ids);
    // A runner that broke may hang while it shuts down. One that is stopped gets all the time it needs.
    await (options.stop.aborted ? runners.stop() : within(CLOSE_MS, runners.stop()));
  }
}

async function withContext<T>(options: WorkerOptions, use: (context: WorkContext) => Promise<T>): Promise<T> {
  const { settings, database, queue, log } = options;
  const pool = createPool(database.url, {
    // One for each masking job, what the runners need, and two to complete jobs and send heartbeats.
    max: settings.workerConcurrency + EXTRA_CONNECTIONS + 2,
    applicationName: 'masked-logins worker',
  });
  const sqs = createQueueClient(queue, { maxSockets: SQS_SOCKETS });
  try {
    const done: Done = { batches: 0, messages: 0, loaded: 0, duplicates: 0, quarantined: 0 };
    return await use({ pool, sqs, queue, kek: settings.kek, log, done });
  } finally {
    sqs.destroy();
    // Connections in a dead network hang.
    await within(CLOSE_MS, pool.end());
  }
}
