import { parseCronItems, type ParsedCronItem, type TaskList } from 'graphile-worker';
import type { Pool } from 'pg';
import type { WorkContext, WorkerTask } from './task.ts';

/** What the runners of masking and of upkeep can do, by the name that a job has in the database. */
export function createTaskLists(
  context: WorkContext,
  tasks: readonly WorkerTask[],
): Record<WorkerTask['kind'], TaskList> {
  const create = (kind: WorkerTask['kind']): TaskList =>
    Object.fromEntries(
      tasks.filter((each) => each.kind === kind).map((each) => [each.name, each.create(context)]),
    );
  return { masking: create('masking'), upkeep: create('upkeep') };
}

/** What runs by the clock. */
export function cronItems(tasks: readonly WorkerTask[]): ParsedCronItem[] {
  return parseCronItems(
    tasks.flatMap(({ name, schedule }) =>
      schedule === undefined
        ? []
        : [{ task: name, match: schedule.match, options: { ...schedule.options, jobKey: name } }],
    ),
  );
}

/**
 * Makes upkeep due, for a worker that runs once: no clock runs there, and without this nothing of it would ever be done
 * if no other worker runs. A job that is there keeps its time.
 */
export async function addUpkeep(pool: Pool, tasks: readonly WorkerTask[]): Promise<void> {
  await pool.query(
    `select graphile_worker.add_job(
       t.name, job_key => t.name, job_key_mode => 'preserve_run_at', max_attempts => 1, priority => 10
     ) from unnest($1::text[]) t (name)`,
    [tasks.filter(({ kind }) => kind === 'upkeep').map(({ name }) => name)],
  );
}
