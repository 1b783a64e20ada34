import type pg from 'pg';
import { stageBatch } from '../src/load/inbox.ts';
import { batchOf, type BenchStack } from './bench-stack.ts';
import { timed } from './benchmark.ts';
import type { Bodies } from './bodies.ts';

/** The size of a full batch, by default. */
export const ROWS = 2_000;

/** Stages and masks a batch. Returns how long masking takes, including the receipts, in milliseconds. */
export function timeMasking(stack: BenchStack, bodies: readonly string[]): Promise<number> {
  return timeBatch(stack, bodies, (batchId) => maskBatch(stack.worker, batchId));
}

/** Masks every value that the benchmark treats as known. */
export async function maskKnown(stack: BenchStack, bodies: Bodies): Promise<void> {
  const all = bodies.known();
  for (let from = 0; from < all.length; from += ROWS) await timeMasking(stack, all.slice(from, from + ROWS));
}

/** Stages a batch and inserts it without masking: the floor. Returns how long inserting takes, in milliseconds. */
export function timeFloor(stack: BenchStack, bodies: readonly string[]): Promise<number> {
  return timeBatch(stack, bodies, (batchId) =>
    stack.superuser.query('select bench.load_plain(batch_id => $1)', [batchId]),
  );
}

/** Calls `masking.mask_batch` like the worker's task. */
export function maskBatch(worker: pg.Client, batchId: string): Promise<unknown> {
  return worker.query('select receipt_handle from masking.mask_batch(batch_id => $1)', [batchId]);
}

/** Stages bodies like the loader. Returns the batch's id. */
export async function stageBodies({ loader }: BenchStack, bodies: readonly string[]): Promise<string> {
  const batch = batchOf(bodies);
  await stageBatch(loader, batch);
  return batch.id;
}

/** Marks all batches as acknowledged, and recycles their slots. */
export async function closeAll({ superuser }: BenchStack): Promise<void> {
  await superuser.query('update staging.batches set acked_at = now() where acked_at is null');
  await superuser.query('select staging.recycle_slots()');
}

async function timeBatch(
  stack: BenchStack,
  bodies: readonly string[],
  process: (batchId: string) => Promise<unknown>,
): Promise<number> {
  const batchId = await stageBodies(stack, bodies);
  const took = await timed(() => process(batchId));
  await closeAll(stack);
  return took;
}
