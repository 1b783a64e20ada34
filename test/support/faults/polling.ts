import { setTimeout as sleep } from 'node:timers/promises';
import type pg from 'pg';

const POLL_MS = 100;

/** Counts the pending batches: neither acknowledged nor lost. */
export const PENDING_BATCHES =
  'select count(*) from staging.batches where acked_at is null and lost_at is null';

/** Counts the rows of all masked batches. */
export const MASKED_ROWS = 'select sum(rows) from staging.batches where masked_at is not null';

/**
 * Waits until a condition is true. If checking it fails (because Postgres is down), the condition counts as false.
 *
 * @returns false after the timeout, which is long enough that only a hang reaches it
 */
export async function until(
  condition: () => Promise<boolean> | boolean,
  timeoutMs = 120_000,
  intervalMs = POLL_MS,
): Promise<boolean> {
  const deadline = performance.now() + timeoutMs;
  while (
    !(await Promise.resolve()
      .then(condition)
      .catch(() => false))
  ) {
    if (performance.now() > deadline) return false;
    await sleep(intervalMs);
  }
  return true;
}

/** Reads one number from the database; null counts as 0. */
export async function numberOf(pool: pg.Pool, query: string): Promise<number> {
  const { rows } = await pool.query<{ n: string | null }>(`select (${query}) as n`);
  return Number(rows[0]?.n ?? 0);
}
