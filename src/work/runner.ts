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

/** How often an idle worker looks for jobs although nobody notified it, in milliseconds. */
const POLL_MS = 1_000;

/** Jobs of upkeep at once. */
const UPKEEP_CONCURRENCY = 1;

/** Connections that the runners need beside one for each masking job: one a job of upkeep, one a runner for LISTEN. */
export const EXTRA_CONNECTIONS = UPKEEP_CONCURRENCY + 2;

/** graphile-worker, running. */
export interface Running {
  /** The ids under which it locks jobs. */
  readonly ids: readonly string[];
  /** Settles when a part of it has ended, with what broke it or with undefined. */
  readonly ended: Promise<unknown>;
  /** Takes no more jobs, and settles when those under way are done. */
  stop(): Promise<void>;
}

/**
 * Starts graphile-worker on a pool of ours, without its signal handlers: with its own pool, a SIGTERM during a job
 * leaves the job locked for four hours. It runs twice: so maintenance that waits for a lock, or rotates keys for
 * hours, never takes a place from masking.
 *
 * @param concurrency masking jobs at once
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
    // After a fatal error of its own, graphile-worker may go on without a worker in it, or resolve as if all were well.
    ended: Promise.race([finished, broken]),
    async stop() {
      // It throws when it is stopping already.
      await runner.stop().catch(() => {});
      await finished;
    },
  };
}

/**
 * Works until no job is due or it is told to stop, and returns how many failed.
 *
 * @param onId is told the id under which jobs are locked, before the first one is
 * @throws what kept it from looking for jobs or from noting what became of one; graphile-worker itself resolves then
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
    const end = () => void Promise.resolve(workerPool.gracefulShutdown('told to stop')).catch(() => {});
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
        // Completion in batches, even of one, is retried when Postgres is away; otherwise nobody awaits it, and a
        // rejection ends the process.
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
  // Its answer may have been lost on the way: the job is then locked by a worker that is alive and knows nothing of it.
  events.on('worker:getJob:error', ({ error }) => resolve(error));
  onlyNewsOfJobs(events);
  return { events, id: () => id, broken };
}
