import { codeOf, LOCK_NOT_AVAILABLE } from '../errors.ts';
import { pause } from '../wait.ts';
import type { WorkContext } from './task.ts';

/** A job gives its place to others after this long, in milliseconds; a minute after, cron starts it again. */
const TURN_MS = 50_000;

/** What a step says of itself. All but `more` is null where it had nothing to do. */
interface Step {
  /** Whether there is more to do. */
  more: boolean;
  /** Whether it was the first step of this work. */
  began: boolean | null;
  /** `paused` where the work paused itself. */
  ended: 'done' | 'paused' | null;
  /** Names the work, and nobody's value. */
  work: string;
  rows: string | null;
  total: string | null;
  /** Since the work was ordered. */
  seconds: number | null;
}

/**
 * Takes background work further, a transaction a step, until nothing is left, its turn is over, or the worker is to
 * stop. Between steps it rests as long as the step took, so that it never has more than half of a connection's time.
 * The beginning and the end of each piece of work are a line of the log, and so is the end of a turn, once a minute.
 * A step that gave up waiting for a lock is taken again.
 *
 * @param step a function of the database that does one step
 * @param stop aborted when the worker is to end
 */
export async function takeSteps(
  { pool, log }: Pick<WorkContext, 'pool' | 'log'>,
  step: 'masking.rotate_step' | 'masking.forget_step' | 'masking.purge_step',
  stop: AbortSignal | undefined,
  turnMs = TURN_MS,
): Promise<void> {
  const endAt = performance.now() + turnMs;
  let last: Step | undefined;
  let told = false;
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
      if (!told) log.warn({ step }, 'somebody holds a lock that this work needs: it is tried again');
      told = true;
    }
    await pause(performance.now() - stepAt, stop);
  }
  if (last !== undefined && last.ended === null) log.info(progressOf(last), `${last.work} goes on`);
}

function progressOf({ rows, total, seconds }: Step): Record<string, number> {
  return {
    rows: Number(rows),
    ...(total === null ? {} : { total: Number(total) }),
    seconds: Math.round(seconds ?? 0),
  };
}
