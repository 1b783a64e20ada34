import type { SQSClient } from '@aws-sdk/client-sqs';
import type { CronItemOptions, Task } from 'graphile-worker';
import type { Pool } from 'pg';
import type { QueueSettings, Settings } from '../config.ts';
import { describe } from '../errors.ts';
import { explain, isOfQueue } from '../explain.ts';
import type { Logger } from '../log.ts';

/** What tasks need. */
export interface WorkContext {
  pool: Pool;
  /** For deleting. A worker never receives. */
  sqs: SQSClient;
  queue: QueueSettings;
  /** Where the key-encryption key is. Without one, another worker or a person must unseal. */
  kek: Settings['kek'];
  log: Logger;
  /** What this worker has acknowledged so far. */
  done: Done;
}

/** Counts of messages, except for `batches`. */
export interface Done {
  batches: number;
  messages: number;
  loaded: number;
  duplicates: number;
  quarantined: number;
}

/** The definition of a task, in a file of `tasks/`. */
export interface TaskDefinition {
  /** The task's name in the database. */
  name: string;
  /** Jobs of upkeep have a slot of their own, so they never delay masking. */
  kind: 'masking' | 'upkeep';
  /** Absent if only functions of the database add the job. */
  schedule?: Schedule;
  /** @param stop aborted when the worker stops */
  run: (context: WorkContext, payload: Record<string, unknown>, stop: AbortSignal) => Promise<void>;
}

/** A task as the runners take it. */
export interface WorkerTask extends Omit<TaskDefinition, 'run'> {
  create: (context: WorkContext) => Task;
}

/** When cron adds a job (UTC). The task's name is the job's key, so there is one job of each task. */
export interface Schedule {
  match: string;
  options: Omit<CronItemOptions, 'jobKey'>;
}

/** Every minute. A run that fails is not retried before the next minute. */
export const EVERY_MINUTE: Schedule = { match: '* * * * *', options: { maxAttempts: 1 } };

/**
 * For work that functions of the database start. The job is added every minute, so that the work continues after a
 * worker was killed. It has a lower priority than daily maintenance (0). A waiting job keeps its time, so the one
 * that has waited longest comes first.
 */
export const BACKGROUND: Schedule = {
  match: '* * * * *',
  options: { maxAttempts: 1, jobKeyMode: 'preserve_run_at', priority: 10 },
};

const DAY_MS = 86_400_000;

/** Once a day. A run that was missed is made up for. */
export function daily(match: string): Schedule {
  return { match, options: { backfillPeriod: DAY_MS } };
}

/** The error that graphile-worker stores in `last_error`: the task's name, the batch and a code, never a value. */
export class TaskError extends Error {
  override name = 'TaskError';

  constructor(message: string) {
    super(message);
    // The stack adds nothing to the name.
    this.stack = '';
  }
}

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/**
 * Makes a task from its definition. All errors of its function are replaced, because an error of the driver contains
 * values, and graphile-worker stores its message in a table.
 */
export function task({ run, ...definition }: TaskDefinition): WorkerTask {
  return {
    ...definition,
    create:
      (context) =>
      async (payload, { abortSignal }) => {
        const given = (payload ?? {}) as Record<string, unknown>;
        try {
          await run(context, given, abortSignal);
        } catch (error) {
          const why = isOfQueue(error)
            ? ` (${explain(error, { command: 'worker', queue: context.queue }).text})`
            : '';
          throw new TaskError(`${definition.name}${batchOf(given)} failed: ${describe(error)}${why}`);
        }
      },
  };
}

/** The batch, for the error. Anybody may put anything into a payload, so only a UUID is repeated. */
function batchOf(payload: Record<string, unknown>): string {
  const id = payload['batch_id'];
  return typeof id === 'string' && UUID.test(id) ? ` of batch ${id}` : '';
}
