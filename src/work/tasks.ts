import { parseCronItems, type ParsedCronItem, type TaskList } from 'graphile-worker';
import type { Pool } from 'pg';
import type { WorkContext, WorkerTask } from './task.ts';

/** The tasks of the two runners, by their names in the database. */
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

/** The schedule. */
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
 * Makes upkeep due, for a worker that runs once. It has no schedule, and without this, upkeep would never run if
 * there is no other worker. A job that exists keeps its time.
 */
export async function addUpkeep(pool: Pool, tasks: readonly WorkerTask[]): Promise<void> {
  await pool.query(
    `select graphile_worker.add_job(
       t.name, job_key => t.name, job_key_mode => 'preserve_run_at', max_attempts => 1, priority => 10
     ) from unnest($1::text[]) t (name)`,
    [tasks.filter(({ kind }) => kind === 'upkeep').map(({ name }) => name)],
  );
}
