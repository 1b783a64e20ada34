import { describe, isOurs } from '../errors.ts';
import { Throttle } from '../retry.ts';
import { describeResidue, residueOf, recycleSlots } from './clear-staging.ts';
import type { WorkContext } from './task.ts';
import { unsealIfSealed } from './unseal.ts';

/** How often a worker sends a heartbeat. After three that are missing, it counts as dead (staging.heartbeat). */
const BEAT_MS = 10_000;
/** A slot that waits to be emptied for this long causes a warning, in seconds. */
const SLOT_LATE_SECONDS = 60;
/** How often to warn about such a slot, in milliseconds. */
const WARN_EVERY_MS = 300_000;

export interface Heartbeat {
  /** Rejects with an error that no retry can fix. It never resolves. */
  readonly fatal: Promise<never>;
  stop(): void;
}

/**
 * Every ten seconds: records that the worker is alive, releases the jobs of dead workers, unseals the database if a
 * crash has sealed it, and empties slots of staging.
 *
 * @param workerIds the ids under which this worker locks jobs
 */
export function startHeartbeat(context: WorkContext, workerIds: readonly string[]): Heartbeat {
  const { promise: fatal, reject } = Promise.withResolvers<never>();
  // The race may be settled already. Then nothing handles the rejection.
  fatal.catch(() => {});
  let beating = false;
  const warnings = new Throttle(WARN_EVERY_MS);
  const timer = setInterval(() => {
    if (beating) return;
    beating = true;
    void beat(context, workerIds)
      .then(() => emptySlots(context, warnings))
      .catch((error: unknown) => {
        if (isOurs(error)) reject(error);
        else context.log.debug(`heartbeat failed: ${describe(error)}`);
      })
      .finally(() => {
        beating = false;
      });
  }, BEAT_MS);
  return { fatal, stop: () => clearInterval(timer) };
}

/** Empties slots that are due, and warns if one stays. */
async function emptySlots({ pool, log }: WorkContext, warnings: Throttle): Promise<void> {
  if ((await recycleSlots(pool)) === 0 || !warnings.isDue()) return;
  const residue = await residueOf(pool);
  if ((residue.slotSeconds ?? 0) >= SLOT_LATE_SECONDS && warnings.pass()) log.warn(describeResidue(residue));
}

/** One heartbeat. Also sent once at the start. */
export async function beat(context: WorkContext, workerIds: readonly string[]): Promise<void> {
  const { rows } = await context.pool.query<{ freed: number; sealed: boolean }>(
    `select sum(staging.heartbeat(worker_id => w.id))::integer as freed, masking.is_sealed() as sealed
       from unnest($1::text[]) w (id)`,
    [workerIds],
  );
  // A seal or a rewrap leaves the old key on disk if other sessions hold its table.
  await context.pool.query('select masking.wipe_kek()');
  if ((rows[0]?.freed ?? 0) > 0)
    context.log.warn({ workers: rows[0]?.freed }, 'released the jobs of dead workers');
  if (rows[0]?.sealed === true && (await unsealIfSealed(context))) {
    // Jobs that failed while the database was sealed are backing off.
    await makeBatchesDue(context);
  }
}

/** Makes the jobs of all batches due at once, also those that are backing off. */
export async function makeBatchesDue({ pool }: WorkContext): Promise<void> {
  await pool.query(`select staging.sweep_batches(overdue => interval '0')`);
}
