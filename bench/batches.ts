import type pg from 'pg';
import { stageBatch } from '../src/load/inbox.ts';
import { batchOf, type BenchStack } from './bench-stack.ts';
import { timed } from './benchmark.ts';
import type { Bodies } from './bodies.ts';

/** A full batch of the loader's. */
export const ROWS = 2_000;

/** How long masking a batch takes, receipts included, in milliseconds. */
export function masked(stack: BenchStack, bodies: readonly string[]): Promise<number> {
  return moved(stack, bodies, (batchId) => maskBatch(stack.worker, batchId));
}

/** Masks every value that is to be known later. */
export async function maskKnown(stack: BenchStack, bodies: Bodies): Promise<void> {
  const all = bodies.all();
  for (let from = 0; from < all.length; from += ROWS) await masked(stack, all.slice(from, from + ROWS));
}

/** How long the floor takes for the same, in milliseconds. */
export function plain(stack: BenchStack, bodies: readonly string[]): Promise<number> {
  return moved(stack, bodies, (batchId) =>
    stack.superuser.query('select bench.load_plain(batch_id => $1)', [batchId]),
  );
}

/** As the worker's task calls it. */
export function maskBatch(worker: pg.Client, batchId: string): Promise<unknown> {
  return worker.query('select receipt_handle from masking.mask_batch(batch_id => $1)', [batchId]);
}

/** Stages bodies as the loader does; returns the batch's id. */
export async function staged({ loader }: BenchStack, bodies: readonly string[]): Promise<string> {
  const batch = batchOf(bodies);
  await stageBatch(loader, batch);
  return batch.id;
}

/** Takes what has been moved on out of staging. */
export async function closeAll({ superuser }: BenchStack): Promise<void> {
  await superuser.query('update staging.batches set acked_at = now() where acked_at is null');
  await superuser.query('select staging.recycle_slots()');
}

async function moved(
  stack: BenchStack,
  bodies: readonly string[],
  move: (batchId: string) => Promise<unknown>,
): Promise<number> {
  const batchId = await staged(stack, bodies);
  const took = await timed(() => move(batchId));
  await closeAll(stack);
  return took;
}
