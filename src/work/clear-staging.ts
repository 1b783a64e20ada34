import { setTimeout as sleep } from 'node:timers/promises';
import type { Pool } from 'pg';
import { codeOf, LOCK_NOT_AVAILABLE } from '../errors.ts';

/** How often to retry emptying a slot that another session holds, in milliseconds. */
const PAUSE_MS = 200;

/** What is left of staging on the disk after it was acknowledged. */
export interface Residue {
  /** Bodies of acknowledged messages; null if a lock prevented the count. */
  bodies: number | null;
  /** How long the oldest of them has been acknowledged, in seconds. */
  oldestSeconds: number | null;
  /** How long the oldest slot has waited to be emptied, in seconds. */
  slotSeconds: number | null;
  /** The process ids of the sessions that hold slots; 0 is a prepared transaction. */
  heldBy: number[];
}

interface Recycled {
  remaining: string | number;
}

/**
 * Removes from the disk everything that was staged until now and is acknowledged, and what rolled-back transactions
 * left. Rows that are still needed are moved.
 *
 * @param withinMs how long to wait for slots that other sessions hold, in milliseconds
 * @returns what is left on the disk after that time; undefined if nothing is
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
 * Empties slots of staging that are due.
 *
 * @param filledUntil all slots that were filled until then are due
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
    // Another session locks the list of slots.
    if (codeOf(error) === LOCK_NOT_AVAILABLE) return 1;
    throw error;
  }
}

/** Reads what is left of staging on the disk. */
export async function residueOf(pool: Pool): Promise<Residue> {
  const { rows } = await pool.query<ResidueRow>('select * from staging.residue()');
  return residueFrom(rows[0]!);
}

/** A row of `staging.residue()`. */
export interface ResidueRow {
  bodies: string | null;
  oldest_seconds: number | null;
  slot_seconds: number | null;
  held_by: number[] | null;
}

export function residueFrom({ bodies, oldest_seconds, slot_seconds, held_by }: ResidueRow): Residue {
  return {
    bodies: bodies === null ? null : Number(bodies),
    oldestSeconds: oldest_seconds,
    slotSeconds: slot_seconds,
    heldBy: held_by ?? [],
  };
}

/** One line that says what is left, why, and what to do. */
export function describeResidue({ bodies, oldestSeconds, slotSeconds, heldBy }: Residue): string {
  const count = bodies === null ? 'an unknown number' : String(bodies);
  const seconds = oldestSeconds ?? slotSeconds;
  const since = seconds === null ? '' : `, for ${seconds} s now`;
  return (
    `bodies of acknowledged messages stay on the disk of Postgres in staging (${count}${since}): ` +
    `${describeHolders(heldBy)}; a running worker, or the next one that starts, empties staging`
  );
}

function describeHolders(heldBy: readonly number[]): string {
  const pids = heldBy.filter((pid) => pid !== 0);
  const holders = [
    ...(pids.length > 0 ? [`pid ${pids.join(', ')} (to end one: select pg_terminate_backend(pid))`] : []),
    ...(heldBy.includes(0) ? ['a prepared transaction (pg_prepared_xacts; rollback prepared)'] : []),
  ];
  if (holders.length === 0) return 'no session holds a lock on staging now';
  return `staging is locked by ${holders.join(' and by ')}`;
}
