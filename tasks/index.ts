/** All tasks of a worker. */
import cleanLedger from './clean_ledger.ts';
import eraseUsers from './erase_users.ts';
import maintainPartitions from './maintain_partitions.ts';
import maskBatch from './mask_batch.ts';
import purgeVault from './purge_vault.ts';
import retention from './retention.ts';
import rotateKeys from './rotate_keys.ts';
import sweepBatches from './sweep_batches.ts';

export const TASKS = [
  maskBatch,
  sweepBatches,
  maintainPartitions,
  retention,
  cleanLedger,
  rotateKeys,
  eraseUsers,
  purgeVault,
];
