import type { Task } from 'graphile-worker';
import { describe } from '../errors.ts';
import { explain, isOfQueue } from '../explain.ts';
import type { WorkContext } from './context.ts';

/** A task before it knows what to work with. */
export type TaskFactory = (context: WorkContext) => Task;

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
 * Makes a task of a function. Whatever the function throws is replaced: an error of the driver carries values, and
 * graphile-worker keeps its message in a table.
 *
 * @param name the task's, as the database has it
 * @param work what it does; its third argument is aborted when the worker is to end
 */
export function task(
  name: string,
  work: (context: WorkContext, payload: Record<string, unknown>, stop: AbortSignal) => Promise<void>,
): TaskFactory {
  return (context) =>
    async (payload, { abortSignal }) => {
      const given = (payload ?? {}) as Record<string, unknown>;
      try {
        await work(context, given, abortSignal);
      } catch (error) {
        const why = isOfQueue(error)
          ? ` (${explain(error, { command: 'worker', queue: context.queue }).text})`
          : '';
        throw new TaskError(`${name}${batchOf(given)} failed: ${describe(error)}${why}`);
      }
    };
}

/** A payload is whatever somebody put into a job: only what looks like a batch's id is repeated. */
function batchOf(payload: Record<string, unknown>): string {
  const id = payload['batch_id'];
  return typeof id === 'string' && UUID.test(id) ? ` of batch ${id}` : '';
}
