import { parseCronItems, type ParsedCronItem, type TaskList } from 'graphile-worker';
import cleanLedger from '../../tasks/clean_ledger.ts';
import maintainPartitions from '../../tasks/maintain_partitions.ts';
import maskBatch from '../../tasks/mask_batch.ts';
import sweepBatches from '../../tasks/sweep_batches.ts';
import type { WorkContext } from './context.ts';

const FACTORIES = {
  mask_batch: maskBatch,
  sweep_batches: sweepBatches,
  maintain_partitions: maintainPartitions,
  clean_ledger: cleanLedger,
};

const DAY_MS = 86_400_000;

/** Every job a worker can do, by the name it has in the database. */
export function createTaskList(context: WorkContext): TaskList {
  return Object.fromEntries(Object.entries(FACTORIES).map(([name, create]) => [name, create(context)]));
}

/** What runs by the clock (UTC). A job key keeps one of each; a day that was missed is made up for. */
export function cronItems(): ParsedCronItem[] {
  return parseCronItems([
    { task: 'sweep_batches', match: '* * * * *', options: { jobKey: 'sweep_batches', maxAttempts: 1 } },
    {
      task: 'maintain_partitions',
      match: '17 1 * * *',
      options: { jobKey: 'maintain_partitions', backfillPeriod: DAY_MS },
    },
    {
      task: 'clean_ledger',
      match: '47 1 * * *',
      options: { jobKey: 'clean_ledger', backfillPeriod: DAY_MS },
    },
  ]);
}
