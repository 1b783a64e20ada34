import { parseCronItems, type CronItem, type ParsedCronItem, type TaskList } from 'graphile-worker';
import type { Pool } from 'pg';
import cleanLedger from '../../tasks/clean_ledger.ts';
import maintainPartitions from '../../tasks/maintain_partitions.ts';
import eraseUsers from '../../tasks/erase_users.ts';
import maskBatch from '../../tasks/mask_batch.ts';
import purgeVault from '../../tasks/purge_vault.ts';
import retention from '../../tasks/retention.ts';
import rotateKeys from '../../tasks/rotate_keys.ts';
import sweepBatches from '../../tasks/sweep_batches.ts';
import type { WorkContext } from './context.ts';
import type { TaskFactory } from './task.ts';

const MASKING = { mask_batch: maskBatch, sweep_batches: sweepBatches };
const UPKEEP = {
  maintain_partitions: maintainPartitions,
  clean_ledger: cleanLedger,
  rotate_keys: rotateKeys,
  erase_users: eraseUsers,
  retention,
  purge_vault: purgeVault,
};

const DAY_MS = 86_400_000;

/**
 * The jobs that a worker can do, by the name they have in the database. Masking, and upkeep of which none ever takes a
 * place of masking's.
 */
export function createTaskLists(context: WorkContext): { masking: TaskList; upkeep: TaskList } {
  const create = (factories: Record<string, TaskFactory>): TaskList =>
    Object.fromEntries(Object.entries(factories).map(([name, make]) => [name, make(context)]));
  return { masking: create(MASKING), upkeep: create(UPKEEP) };
}

/** Begun by functions of the database, and gone on with every minute, should a worker have been killed. */
const BACKGROUND = ['rotate_keys', 'erase_users', 'purge_vault'];

function daily(task: string, match: string): CronItem {
  return { task, match, options: { jobKey: task, backfillPeriod: DAY_MS } };
}

/**
 * What runs by the clock (UTC). A job key keeps one of each; a day that was missed is made up for. Background work
 * comes after maintenance (priority 0), and what has waited longest first: a job that waits keeps its place.
 */
export function cronItems(): ParsedCronItem[] {
  return parseCronItems([
    { task: 'sweep_batches', match: '* * * * *', options: { jobKey: 'sweep_batches', maxAttempts: 1 } },
    ...BACKGROUND.map((task) => ({
      task,
      match: '* * * * *',
      options: { jobKey: task, jobKeyMode: 'preserve_run_at' as const, maxAttempts: 1, priority: 10 },
    })),
    daily('maintain_partitions', '17 1 * * *'),
    daily('retention', '27 1 * * *'),
    daily('clean_ledger', '47 1 * * *'),
  ]);
}

/**
 * Makes upkeep due, for a worker that runs once: no clock runs there, and without this nothing of it would ever be done
 * where no other worker runs. A job that is there keeps its time.
 */
export async function addUpkeep(pool: Pool): Promise<void> {
  await pool.query(
    `select graphile_worker.add_job(
       t.name, job_key => t.name, job_key_mode => 'preserve_run_at', max_attempts => 1, priority => 10
     ) from unnest($1::text[]) t (name)`,
    [Object.keys(UPKEEP)],
  );
}
