import { setTimeout as sleep } from 'node:timers/promises';
import type { Pool } from 'pg';
import { codeOf, LOCK_NOT_AVAILABLE } from '../errors.ts';

/** Between two attempts to empty a slot that somebody holds, in milliseconds. */
const PAUSE_MS = 200;

/** What is left on the disk of staging although it serves no purpose any more. */
export interface Residue {
  /** Bodies of messages that are acknowledged; null where a lock kept the database from counting them. */
  bodies: number | null;
  /** For how many seconds the oldest of them has been acknowledged. */
  oldestSeconds: number | null;
  /** For how many seconds the oldest slot has waited to be emptied. */
  slotSeconds: number | null;
  /** Process ids of the sessions that hold slots; 0 is a prepared transaction. */
  heldBy: number[];
}

interface Recycled {
  remaining: string | number;
}

/**
 * Takes everything off the disk that was staged until now and is acknowledged, or that a rolled-back transaction
 * left. What is still needed is moved.
 *
 * @param withinMs how long to wait for slots that somebody holds, in milliseconds
 * @returns what is left on the disk then, or undefined where nothing is
 */
export async function clearStaging(pool: Pool, withinMs: number): Promise<Residue | undefined> {
  const deadline = performance.now() + withinMs;
  const { rows } = await pool.query<{ now: string }>('select clock_timestamp()::text as now');
  while ((await recycleSlots(pool, rows[0]!.now)) > 0) {
    if (performance.now() > deadline) return residueOf(pool);
    await sleep(PAUSE_MS);
  }
  return undefined;
}

/**
 * Empties slots of staging whose turn it is.
 *
 * @param filledUntil everything that was staged until then is to go
 * @returns how many slots could not be emptied, or wait for the next call
 */
export async function recycleSlots(pool: Pool, filledUntil?: string): Promise<number> {
  try {
    const { rows } = await pool.query<Recycled>(
      'select remaining from staging.recycle_slots(filled_until => $1)',
      [filledUntil ?? null],
    );
    return Number(rows[0]!.remaining);
  } catch (error) {
    // Somebody holds the list of the slots itself.
    if (codeOf(error) === LOCK_NOT_AVAILABLE) return 1;
    throw error;
  }
}

/** What is left on the disk of staging. */
export async function residueOf(pool: Pool): Promise<Residue> {
  const { rows } = await pool.query<{
    bodies: string | null;
    oldest_seconds: number | null;
    slot_seconds: number | null;
    held_by: number[] | null;
  }>('select * from staging.residue()');
  const row = rows[0]!;
  return {
    bodies: row.bodies === null ? null : Number(row.bodies),
    oldestSeconds: row.oldest_seconds,
    slotSeconds: row.slot_seconds,
    heldBy: row.held_by ?? [],
  };
}

/** What is left, why, and what to do: one line. */
export function describeResidue({ bodies, oldestSeconds, slotSeconds, heldBy }: Residue): string {
  const count = bodies === null ? 'an unknown number' : String(bodies);
  const seconds = oldestSeconds ?? slotSeconds;
  const since = seconds === null ? '' : `, for ${seconds} s now`;
  return (
    `bodies of acknowledged messages stay on the disk of Postgres in staging (${count}${since}): ` +
    `${describeHolders(heldBy)}; the next worker that starts, or one that runs, empties staging`
  );
}

function describeHolders(heldBy: readonly number[]): string {
  const pids = heldBy.filter((pid) => pid !== 0);
  const holders = [
    ...(pids.length > 0 ? [`pid ${pids.join(', ')} (to end one: select pg_terminate_backend(pid))`] : []),
    ...(heldBy.includes(0) ? ['a prepared transaction (pg_prepared_xacts; rollback prepared)'] : []),
  ];
  if (holders.length === 0) return 'nobody holds a lock on staging now';
  return `a lock on staging is held by ${holders.join(' and by ')}`;
}
