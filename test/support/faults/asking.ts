import { setTimeout as sleep } from 'node:timers/promises';
import type pg from 'pg';

const POLL_MS = 100;

/** Batches that are neither acknowledged nor lost. */
export const OPEN_BATCHES = 'select count(*) from staging.batches where acked_at is null and lost_at is null';

/** Rows of batches that have been masked, since the beginning. */
export const MASKED_ROWS = 'select sum(rows) from staging.batches where masked_at is not null';

/**
 * Asks until the answer is yes. A question that fails (Postgres is down) counts as no.
 *
 * @returns false where it never was: a hang, not slowness
 */
export async function until(
  question: () => Promise<boolean> | boolean,
  within = 120_000,
  every = POLL_MS,
): Promise<boolean> {
  const deadline = performance.now() + within;
  while (
    !(await Promise.resolve()
      .then(question)
      .catch(() => false))
  ) {
    if (performance.now() > deadline) return false;
    await sleep(every);
  }
  return true;
}

/** One number from the database, read as a superuser. */
export async function numberOf(pool: pg.Pool, query: string): Promise<number> {
  const { rows } = await pool.query<{ n: string | null }>(`select (${query}) as n`);
  return Number(rows[0]?.n ?? 0);
}
