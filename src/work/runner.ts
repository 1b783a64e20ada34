import { EventEmitter } from 'node:events';
import { Logger, run, runOnce, type RunnerOptions, type WorkerEvents } from 'graphile-worker';
import { libraryLogger } from '../database/library-logger.ts';
import type { WorkContext } from './context.ts';
import { createTaskList, cronItems } from './tasks.ts';

/** How often an idle worker looks for jobs although nobody notified it, in milliseconds. */
const POLL_MS = 1_000;

/** A graphile-worker that runs. */
export interface Running {
  /** The id under which it locks jobs. */
  readonly id: string;
  /** Settles when it has ended, with what broke it or with undefined. */
  readonly ended: Promise<unknown>;
  /** Takes no more jobs, and settles when those under way are done. */
  stop(): Promise<void>;
}

/**
 * Starts graphile-worker on a pool of ours, without its signal handlers: with its own pool, a SIGTERM during a job
 * leaves the job locked for four hours.
 */
export async function startRunner(context: WorkContext, concurrency: number): Promise<Running> {
  const { events, id, broken } = watchedEvents();
  const runner = await run({ ...options(context, concurrency), events, parsedCronItems: cronItems() });
  const finished = runner.promise.then(
    () => undefined,
    (error: unknown) => error,
  );
  return {
    id: id(),
    // After a fatal error of its own, graphile-worker may go on without a worker in it, or resolve as if all were well.
    ended: Promise.race([finished, broken]),
    async stop() {
      // It throws when it is stopping already.
      await runner.stop().catch(() => {});
      await finished;
    },
  };
}

/** Works until no job is due or it is told to stop, and returns how many failed. */
export async function runUntilIdle(
  context: WorkContext,
  concurrency: number,
  stop: AbortSignal,
): Promise<{ failed: number }> {
  const { events } = watchedEvents();
  let failed = 0;
  events.on('pool:create', ({ workerPool }) => {
    const end = () => void Promise.resolve(workerPool.gracefulShutdown('told to stop')).catch(() => {});
    if (stop.aborted) end();
    else stop.addEventListener('abort', end, { once: true });
  });
  events.on('job:error', () => {
    failed += 1;
  });
  await runOnce({ ...options(context, concurrency), events });
  return { failed };
}

function options(context: WorkContext, concurrency: number): RunnerOptions {
  return {
    pgPool: context.pool,
    taskList: createTaskList(context),
    noHandleSignals: true,
    logger: libraryLogger(Logger, context.log),
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
  return { events, id: () => id, broken };
}
