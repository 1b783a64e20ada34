import type { SQSClient } from '@aws-sdk/client-sqs';
import type { CronItemOptions, Task } from 'graphile-worker';
import type { Pool } from 'pg';
import type { QueueSettings, Settings } from '../config.ts';
import { describe } from '../errors.ts';
import { explain, isOfQueue } from '../explain.ts';
import type { Logger } from '../log.ts';

/** What tasks work with. */
export interface WorkContext {
  pool: Pool;
  /** Deletes only: nothing here ever receives. */
  sqs: SQSClient;
  queue: QueueSettings;
  /** Where the key-encryption key is; without one somebody else has to unseal. */
  kek: Settings['kek'];
  log: Logger;
  /** What this worker has acknowledged since it began. */
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

/** What a file of `tasks/` says of its job. */
export interface TaskDefinition {
  /** As the database has it. */
  name: string;
  /** No job of upkeep ever takes the place of a masking job. */
  kind: 'masking' | 'upkeep';
  /** Absent if only functions of the database add the job. */
  schedule?: Schedule;
  /** @param stop aborted when the worker is to end */
  run: (context: WorkContext, payload: Record<string, unknown>, stop: AbortSignal) => Promise<void>;
}

/** A task as the runners take it. */
export interface WorkerTask extends Omit<TaskDefinition, 'run'> {
  create: (context: WorkContext) => Task;
}

/** When cron adds a job (UTC). The job's key is its name, so that there is one of each. */
export interface Schedule {
  match: string;
  options: Omit<CronItemOptions, 'jobKey'>;
}

/** Every minute; a run that fails is not tried again before the next minute. */
export const EVERY_MINUTE: Schedule = { match: '* * * * *', options: { maxAttempts: 1 } };

/**
 * For work that functions of the database begin: every minute it goes on, if a worker was killed. It comes after daily
 * maintenance (priority 0), and what has waited longest comes first, because a job that waits keeps its time.
 */
export const BACKGROUND: Schedule = {
  match: '* * * * *',
  options: { maxAttempts: 1, jobKeyMode: 'preserve_run_at', priority: 10 },
};

const DAY_MS = 86_400_000;

/** Once a day; a day that was missed is made up for. */
export function daily(match: string): Schedule {
  return { match, options: { backfillPeriod: DAY_MS } };
}

/** What graphile-worker stores in `last_error`: a task's name, the batch, and a code. Never a value. */
export class TaskError extends Error {
  override name = 'TaskError';

  constructor(message: string) {
    super(message);
    // A stack says nothing that the name does not.
    this.stack = '';
  }
}

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/**
 * Makes a task of a definition. Whatever its function throws is replaced: an error of the driver carries values, and
 * graphile-worker keeps its message in a table.
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

/** A payload is whatever somebody put into a job: only what looks like a batch's id is repeated. */
function batchOf(payload: Record<string, unknown>): string {
  const id = payload['batch_id'];
  return typeof id === 'string' && UUID.test(id) ? ` of batch ${id}` : '';
}
