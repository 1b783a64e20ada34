import { setTimeout as sleep } from 'node:timers/promises';
import type { QueueSettings, Settings } from '../config.ts';
import { checkDatabase } from '../database/check.ts';
import { createPool } from '../database/pool.ts';
import { refuseTransactionPooling } from '../database/pooler.ts';
import type { DatabaseSettings } from '../database/url.ts';
import { describe, FatalError, SettingError } from '../errors.ts';
import { explain } from '../explain.ts';
import type { Logger } from '../log.ts';
import { createQueueClient } from '../queue/client.ts';
import { clearStaging, describeResidue, type Residue } from './clear-staging.ts';
import { beat, startHeartbeat, type Heartbeat } from './heartbeat.ts';
import { EXTRA_CONNECTIONS, runUntilIdle, startRunners } from './runner.ts';
import type { Done, WorkContext, WorkerTask } from './task.ts';
import { addUpkeep } from './tasks.ts';
import { checkKek } from './unseal.ts';

/** Pauses before a worker that broke is built anew, in milliseconds: the first and the longest. */
const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 5_000;
/** DeleteMessageBatch requests at once, over all jobs. */
const SQS_SOCKETS = 16;
/** While it lasts, a failure is told again this often, in milliseconds. */
const TELL_EVERY_MS = 30_000;
/** How long a worker waits at its start for slots of staging that somebody holds, in milliseconds. */
const CLEAR_AT_START_MS = 2_000;
/** What is kept back of SHUTDOWN_GRACE_SECONDS for the end of the process, in milliseconds. */
const MARGIN_MS = 1_000;
/** Times in a row that Postgres may refuse in a way that no retry heals, before the worker believes it. */
const REFUSALS = 3;

export interface WorkerOptions {
  settings: Settings;
  database: DatabaseSettings;
  queue: QueueSettings;
  log: Logger;
  /** Aborted when the worker is to finish the jobs under way and end. */
  stop: AbortSignal;
  /** What it can do. */
  tasks: readonly WorkerTask[];
}

/**
 * Works until told to stop, and then empties staging. What breaks (Postgres restarting, a connection cut, graphile-worker giving up) is
 * built anew; the supervisor of the process is needed only for what no retry heals.
 *
 * @throws {FatalError} for what no retry heals, saying what to do
 */
export async function runWorker(options: WorkerOptions): Promise<void> {
  const { log, stop } = options;
  const stoppedAt = timeOf(stop);
  const formerIds: string[] = [];
  let kekIsRight = false;
  let failures = 0;
  let refusals = 0;
  let told = { text: '', at: Number.NEGATIVE_INFINITY };
  while (!stop.aborted) {
    const startedAt = Date.now();
    try {
      await withContext(options, async (context) => {
        await refuseTransactionPooling(context.pool, options.database.display);
        await checkDatabase(context.pool);
        // Once a process: after a rewrap a worker with the former key goes on until it has to unseal.
        if (!kekIsRight) await checkKek(context);
        kekIsRight = true;
        await workUntilBroken(context, options, formerIds);
      });
      refusals = 0;
    } catch (error) {
      if (error instanceof FatalError || error instanceof SettingError) throw error;
      const fault = explain(error, { command: 'worker', database: options.database });
      refusals = fault.fatal ? refusals + 1 : 0;
      // A server in the middle of a restart refuses for a moment what it takes a second later.
      const isFirst = failures === 0 && !kekIsRight;
      if (fault.fatal && (isFirst || refusals >= REFUSALS)) throw new FatalError(fault.text);
      const now = performance.now();
      if (fault.text !== told.text || now - told.at > TELL_EVERY_MS) {
        told = { text: fault.text, at: now };
        log.warn({ attempts: failures + 1 }, `the worker starts anew until it can work: ${fault.text}`);
      }
    }
    failures = Date.now() - startedAt > LONGEST_PAUSE_MS ? 1 : failures + 1;
    const pause = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** (failures - 1));
    await sleep(pause, undefined, { signal: stop }).catch(() => {});
  }
  await withContext(options, async (context) => {
    const residue = await clearAtEnd(context, options, stoppedAt()).catch((error: unknown) => {
      log.warn(`staging was not emptied (${describe(error)}): the next worker does it at its start`);
    });
    if (residue !== undefined) throw new FatalError(describeResidue(residue));
  });
}

/** What a worker that runs once has done. */
export interface OnceSummary extends Done {
  /** Runs of jobs that failed; the next worker tries them again. */
  failed: number;
  /** What is acknowledged and still on the disk, where somebody's lock keeps it there. */
  residue: Residue | undefined;
}

/** Works until no job is due or it is told to stop, and until nothing that is acknowledged is on the disk. */
export function runWorkerOnce(options: WorkerOptions): Promise<OnceSummary> {
  const stoppedAt = timeOf(options.stop);
  return withContext(options, async (context) => {
    await refuseTransactionPooling(context.pool, options.database.display);
    await checkDatabase(context.pool);
    await checkKek(context);
    await clearAtStart(context);
    await beat(context, [`once-${process.pid}`]);
    // What failed earlier and has backed off is due now: somebody has come to see it done.
    await context.pool.query(`select staging.sweep_batches(overdue => interval '0')`);
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

/** Empties staging of what a worker left that was killed. */
async function clearAtStart({ pool, log }: WorkContext): Promise<void> {
  const residue = await clearStaging(pool, CLEAR_AT_START_MS);
  if (residue !== undefined) log.warn(describeResidue(residue));
}

/** Empties staging within what is left of SHUTDOWN_GRACE_SECONDS, or, where nobody told it to stop, all of it. */
function clearAtEnd(
  { pool }: WorkContext,
  { settings }: WorkerOptions,
  stoppedAt: number | undefined,
): Promise<Residue | undefined> {
  const elapsed = stoppedAt === undefined ? 0 : performance.now() - stoppedAt;
  return clearStaging(pool, settings.shutdownGraceSeconds * 1_000 - MARGIN_MS - elapsed);
}

/** When it was told to stop, as performance.now() counts; undefined until then. */
function timeOf(stop: AbortSignal): () => number | undefined {
  let stoppedAt = stop.aborted ? performance.now() : undefined;
  stop.addEventListener('abort', () => (stoppedAt = performance.now()), { once: true });
  return () => stoppedAt;
}

async function workUntilBroken(
  context: WorkContext,
  options: WorkerOptions,
  formerIds: string[],
): Promise<void> {
  if (formerIds.length === 0) await clearAtStart(context);
  const runners = await startRunners(context, options.tasks, options.settings.workerConcurrency);
  const heartbeat = startHeartbeat(context, runners.ids);
  const stopped = new Promise<void>((resolve) => {
    if (options.stop.aborted) resolve();
    options.stop.addEventListener('abort', () => resolve(), { once: true });
  });
  try {
    // What this process had locked before it broke is free at once; only others have to wait for the heartbeats.
    if (formerIds.length > 0) {
      await context.pool.query('select graphile_worker.force_unlock_workers($1::text[])', [formerIds]);
      // Only now: until then the next attempt needs them.
      formerIds.length = 0;
    }
    await beat(context, runners.ids);
    context.log.info({ concurrency: options.settings.workerConcurrency }, 'the worker is looking for jobs');
    const error = await Promise.race([runners.ended, heartbeat.fatal, stopped]);
    if (!options.stop.aborted) throw error ?? new Error('graphile-worker ended by itself');
  } finally {
    heartbeat.stop();
    formerIds.push(...runners.ids);
    await Promise.race([runners.stop(), brokenFor(options.stop)]);
  }
}

/** A runner that broke may hang in its own shutdown: it gets a moment, and all the time it wants when we are told to stop. */
async function brokenFor(stop: AbortSignal): Promise<void> {
  if (stop.aborted) return new Promise(() => {});
  await sleep(LONGEST_PAUSE_MS);
}

async function withContext<T>(options: WorkerOptions, use: (context: WorkContext) => Promise<T>): Promise<T> {
  const { settings, database, queue, log } = options;
  const pool = createPool(database.url, {
    // One a masking job, what the runners need, and two to complete jobs and beat.
    max: settings.workerConcurrency + EXTRA_CONNECTIONS + 2,
    applicationName: 'masked-logins worker',
  });
  const sqs = createQueueClient(queue, { maxSockets: SQS_SOCKETS });
  try {
    const done: Done = { batches: 0, messages: 0, loaded: 0, duplicates: 0, quarantined: 0 };
    return await use({ pool, sqs, queue, kek: settings.kek, log, done });
  } finally {
    sqs.destroy();
    // Connections that hang in a dead network would hold it up for ever.
    await Promise.race([pool.end(), sleep(LONGEST_PAUSE_MS, undefined, { ref: false })]);
  }
}
