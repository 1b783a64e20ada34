import { EventEmitter } from 'node:events';
import {
  Logger,
  run,
  runOnce,
  type ParsedCronItem,
  type Runner,
  type RunnerOptions,
  type TaskList,
  type WorkerEvents,
} from 'graphile-worker';
import { libraryLogger } from '../database/library-logger.ts';
import { describe } from '../errors.ts';
import { onAbort } from '../wait.ts';
import { onlyNewsOfJobs } from './notifications.ts';
import { TaskError, type WorkContext, type WorkerTask } from './task.ts';
import { createTaskLists, cronItems } from './tasks.ts';

/** How often an idle worker looks for jobs without a notification, in milliseconds. */
const POLL_MS = 1_000;

/** Jobs of upkeep at the same time. */
const UPKEEP_CONCURRENCY = 1;

/**
 * Connections of the runners besides those for masking jobs: one for each job of upkeep, and one for LISTEN for each
 * runner.
 */
export const EXTRA_CONNECTIONS = UPKEEP_CONCURRENCY + 2;

/** graphile-worker, running. */
export interface Running {
  /** The ids under which it locks jobs. */
  readonly ids: readonly string[];
  /** Resolves when a part of it has ended, with the error or with undefined. */
  readonly ended: Promise<unknown>;
  /** Starts no more jobs, and resolves when those under way are done. */
  stop(): Promise<void>;
}

/**
 * Starts graphile-worker with the context's pool and without its signal handlers. With its own pool, a SIGTERM during a
 * job leaves the job locked for four hours. It runs twice, so that upkeep, which may wait for a lock or rotate keys for
 * hours, never takes a slot from masking.
 *
 * @param concurrency masking jobs at the same time
 */
export async function startRunners(
  context: WorkContext,
  tasks: readonly WorkerTask[],
  concurrency: number,
): Promise<Running> {
  const { masking, upkeep } = createTaskLists(context, tasks);
  const first = await startRunner(context, masking, concurrency, []);
  const second = await startRunner(context, upkeep, UPKEEP_CONCURRENCY, cronItems(tasks)).catch(
    async (error: unknown) => {
      await first.stop();
      throw error;
    },
  );
  return {
    ids: [...first.ids, ...second.ids],
    ended: Promise.race([first.ended, second.ended]),
    async stop() {
      await Promise.all([first.stop(), second.stop()]);
    },
  };
}

async function startRunner(
  context: WorkContext,
  taskList: TaskList,
  concurrency: number,
  parsedCronItems: ParsedCronItem[],
): Promise<Running> {
  const { events, id, broken } = watchedEvents();
  const runner: Runner = await run({ ...options(context, taskList, concurrency), events, parsedCronItems });
  const finished = runner.promise.then(
    () => undefined,
    (error: unknown) => error,
  );
  return {
    ids: [id()],
    // After a fatal error, graphile-worker may continue without a worker, or resolve as if there were no error.
    ended: Promise.race([finished, broken]),
    async stop() {
      // It throws if it is stopping already.
      await runner.stop().catch(() => {});
      await finished;
    },
  };
}

/**
 * Works until no job is due or it is stopped. Returns how many runs of jobs failed.
 *
 * @param onId called with the id under which jobs are locked, before the first job
 * @throws the error that prevented it from getting jobs or completing one; graphile-worker itself resolves then
 */
export async function runUntilIdle(
  context: WorkContext,
  tasks: readonly WorkerTask[],
  concurrency: number,
  stop: AbortSignal,
  onId: (id: string) => void,
): Promise<{ failed: number }> {
  const { masking, upkeep } = createTaskLists(context, tasks);
  const { events, broken } = watchedEvents();
  let failed = 0;
  let problem: unknown;
  events.on('pool:create', ({ workerPool }) => {
    onId(workerPool.id);
    const end = () => void Promise.resolve(workerPool.gracefulShutdown('stopped')).catch(() => {});
    onAbort(stop, end);
  });
  events.on('job:error', () => {
    failed += 1;
  });
  void broken.then((error) => {
    problem ??= error;
  });
  await runOnce({ ...options(context, { ...masking, ...upkeep }, concurrency), events });
  if (problem !== undefined) throw problem;
  return { failed };
}

function options(context: WorkContext, taskList: TaskList, concurrency: number): RunnerOptions {
  return {
    pgPool: context.pool,
    taskList,
    noHandleSignals: true,
    logger: libraryLogger(Logger, context.log, (error) =>
      error instanceof TaskError ? error.message : describe(error),
    ),
    preset: {
      worker: {
        concurrentJobs: concurrency,
        pollInterval: POLL_MS,
        // Only completion in batches, even of one job, is retried when Postgres is unavailable. Without it, nothing
        // awaits the completion, and a rejection ends the process.
        completeJobBatchDelay: 0,
        failJobBatchDelay: 0,
      },
    },
  };
}

function watchedEvents(): { events: WorkerEvents; id: () => string; broken: Promise<unknown> } {
  const events: WorkerEvents = new EventEmitter();
  const { promise: broken, resolve } = Promise.withResolvers<unknown>();
  let id = '';
  events.on('pool:create', ({ workerPool }) => {
    id = workerPool.id;
  });
  events.on('pool:fatalError', ({ error }) => resolve(error));
  events.on('worker:fatalError', ({ error }) => resolve(error));
  // The answer may have been lost. Then the job is locked by a worker that is alive and does not know about it.
  events.on('worker:getJob:error', ({ error }) => resolve(error));
  onlyNewsOfJobs(events);
  return { events, id: () => id, broken };
}
