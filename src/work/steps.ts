import { codeOf, LOCK_NOT_AVAILABLE } from '../errors.ts';
import { pause } from '../wait.ts';
import type { WorkContext } from './task.ts';

/** A job yields its slot to others after this long, in milliseconds. Cron starts it again within a minute. */
const TURN_MS = 50_000;

/** The result of a step. All but `more` is null if there was nothing to do. */
interface Step {
  /** Whether there is more to do. */
  more: boolean;
  /** Whether it was the first step of this work. */
  began: boolean | null;
  /** `paused` if the work paused itself. */
  ended: 'done' | 'paused' | null;
  /** A name for the work, without values. */
  work: string;
  rows: string | null;
  total: string | null;
  /** Since the work was requested. */
  seconds: number | null;
}

/**
 * Runs steps of background work, each in a transaction, until nothing is left, its turn is over, or the worker stops.
 * Between steps it rests for as long as the step took, so it uses at most half of a connection's time. It logs the
 * start and the end of each piece of work, and the end of a turn. A step that gave up waiting for a lock is retried.
 *
 * @param step a function of the database that does one step
 * @param stop aborted when the worker stops
 */
export async function takeSteps(
  { pool, log }: Pick<WorkContext, 'pool' | 'log'>,
  step: 'masking.rotate_step' | 'masking.erase_step' | 'masking.purge_step',
  stop: AbortSignal | undefined,
  turnMs = TURN_MS,
): Promise<void> {
  const endAt = performance.now() + turnMs;
  let last: Step | undefined;
  let isLockLogged = false;
  for (;;) {
    const stepAt = performance.now();
    if (stop?.aborted === true || stepAt > endAt) break;
    try {
      const { rows } = await pool.query<Step>(`select * from ${step}()`);
      last = rows[0]!;
      if (last.began === true) log.info(progressOf(last), `${last.work} began`);
      if (last.ended === 'done') log.info(progressOf(last), `${last.work} is done`);
      if (last.ended === 'paused')
        log.warn(progressOf(last), `${last.work} paused itself: masked-logins status says why`);
      if (!last.more) return;
    } catch (error) {
      if (codeOf(error) !== LOCK_NOT_AVAILABLE) throw error;
      if (!isLockLogged) log.warn({ step }, 'another session holds a lock that this work needs: retrying');
      isLockLogged = true;
    }
    await pause(performance.now() - stepAt, stop);
  }
  if (last !== undefined && last.ended === null) log.info(progressOf(last), `${last.work} continues`);
}

function progressOf({ rows, total, seconds }: Step): Record<string, number> {
  return {
    rows: Number(rows),
    ...(total === null ? {} : { total: Number(total) }),
    seconds: Math.round(seconds ?? 0),
  };
}
