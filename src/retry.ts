/** The waits between attempts, in milliseconds. */
export interface Backoff {
  /** The longest that the first wait may be. It doubles with each further failure. */
  firstMs: number;
  /** The longest that any wait may be. */
  ceilingMs: number;
}

/**
 * How long to wait before the next attempt: exponential back-off with equal jitter. Half of the wait is fixed, so that
 * a failing service gets a rest. The other half is random, so that many processes do not come back at the same time.
 *
 * @param failures how many attempts in a row have failed; at least 1
 * @returns milliseconds
 * @see https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/ ("Exponential Backoff And Jitter",
 *   AWS Architecture Blog)
 */
export function backoffMs(failures: number, { firstMs, ceilingMs }: Backoff): number {
  const longest = Math.min(ceilingMs, firstMs * 2 ** (failures - 1));
  return (longest * (1 + Math.random())) / 2;
}

/** Limits how often the same thing is done while its cause lasts, for example logged. */
export class Throttle {
  readonly #intervalMs: number;
  #last = { what: '', at: Number.NEGATIVE_INFINITY };

  /** @param intervalMs how long to wait before doing it again, in milliseconds */
  constructor(intervalMs: number) {
    this.#intervalMs = intervalMs;
  }

  /** Whether it is due: if it is something new, or the interval has passed. */
  isDue(what = ''): boolean {
    return what !== this.#last.what || performance.now() - this.#last.at >= this.#intervalMs;
  }

  /** The same. If it is due, the interval starts again. */
  pass(what = ''): boolean {
    if (!this.isDue(what)) return false;
    this.#last = { what, at: performance.now() };
    return true;
  }
}
