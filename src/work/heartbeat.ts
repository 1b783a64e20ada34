import { describe } from '../errors.ts';
import { describeResidue, residueOf, recycleSlots } from './clear-staging.ts';
import type { WorkContext } from './task.ts';
import { isKeyProblem, unsealIfSealed } from './unseal.ts';

/** A worker that is silent for three beats counts as dead (staging.heartbeat). */
const BEAT_MS = 10_000;
/** After how long a slot that cannot be emptied is worth a warning, in seconds, and how long until the next one, in milliseconds. */
const SLOT_LATE_SECONDS = 60;
const WARN_EVERY_MS = 300_000;

export interface Heartbeat {
  /** Settles only by rejection: with what no retry heals. */
  readonly fatal: Promise<never>;
  stop(): void;
}

/**
 * Says every ten seconds that a worker is alive, frees the jobs of dead ones, unseals a database that a crash has
 * sealed, and empties slots of staging.
 *
 * @param workerIds under which this worker locks jobs
 */
export function startHeartbeat(context: WorkContext, workerIds: readonly string[]): Heartbeat {
  const { promise: fatal, reject } = Promise.withResolvers<never>();
  // Whoever races against it may have settled already.
  fatal.catch(() => {});
  let beating = false;
  let warnedAt = -Infinity;
  const timer = setInterval(() => {
    if (beating) return;
    beating = true;
    void beat(context, workerIds)
      .then(async () => {
        const isTold = performance.now() - warnedAt < WARN_EVERY_MS;
        if (!(await emptySlots(context, isTold))) warnedAt = performance.now();
      })
      .catch((error: unknown) => {
        if (isKeyProblem(error)) reject(error as Error);
        else context.log.debug(`heartbeat failed: ${describe(error)}`);
      })
      .finally(() => {
        beating = false;
      });
  }, BEAT_MS);
  return { fatal, stop: () => clearInterval(timer) };
}

/** Empties slots whose turn it is. Returns false where it has warned that one stays. */
async function emptySlots({ pool, log }: WorkContext, isTold: boolean): Promise<boolean> {
  if ((await recycleSlots(pool)) === 0 || isTold) return true;
  const residue = await residueOf(pool);
  if ((residue.slotSeconds ?? 0) < SLOT_LATE_SECONDS) return true;
  log.warn(describeResidue(residue));
  return false;
}

/** One beat, also done once at the start: alive, the dead freed, old keys wiped, unsealed. */
export async function beat(context: WorkContext, workerIds: readonly string[]): Promise<void> {
  const { rows } = await context.pool.query<{ freed: number; sealed: boolean }>(
    `select sum(staging.heartbeat(worker_id => w.id))::integer as freed, masking.is_sealed() as sealed
       from unnest($1::text[]) w (id)`,
    [workerIds],
  );
  // What a seal or a rewrap had to leave on disk while others held the key's table.
  await context.pool.query('select masking.wipe_kek()');
  if ((rows[0]?.freed ?? 0) > 0)
    context.log.warn({ workers: rows[0]?.freed }, 'freed the jobs of dead workers');
  if (rows[0]?.sealed === true && (await unsealIfSealed(context))) {
    // Jobs that failed while it was sealed have backed off.
    await context.pool.query(`select staging.sweep_batches(overdue => interval '0')`);
  }
}
