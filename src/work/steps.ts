import { setTimeout as sleep } from 'node:timers/promises';
import { codeOf } from '../errors.ts';
import type { WorkContext } from './context.ts';

const LOCK_NOT_AVAILABLE = '55P03';

/** A job gives its place to others after this long, in milliseconds; a minute after, cron starts it again. */
const TURN_MS = 50_000;

/**
 * Takes background work further, a transaction a step, until nothing is left, its turn is over, or the worker is to
 * stop. Between steps it rests as long as the step took, so that it never has more than half of a connection's time.
 * A step that gave up waiting for a lock is taken again.
 *
 * @param step a function of the database that does one step and says whether there is more to do
 * @param stop aborted when the worker is to end
 */
export async function takeSteps(
  { pool, log }: Pick<WorkContext, 'pool' | 'log'>,
  step: 'masking.rotate_step' | 'masking.forget_step' | 'masking.purge_step',
  stop: AbortSignal | undefined,
): Promise<void> {
  const endAt = performance.now() + TURN_MS;
  let told = false;
  for (;;) {
    const stepAt = performance.now();
    if (stop?.aborted === true || stepAt > endAt) return;
    try {
      const { rows } = await pool.query<{ more: boolean }>(`select ${step}() as more`);
      if (rows[0]?.more !== true) return;
    } catch (error) {
      if (codeOf(error) !== LOCK_NOT_AVAILABLE) throw error;
      if (!told) log.warn({ step }, 'somebody holds a lock that this work needs: it is tried again');
      told = true;
    }
    await sleep(performance.now() - stepAt, undefined, { signal: stop }).catch(() => {});
  }
}
