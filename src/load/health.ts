import { FatalError, type Fault } from '../errors.ts';
import type { Logger } from '../log.ts';

/** First wait after a failure, in milliseconds; it doubles with each further one. */
const FIRST_BACKOFF_MS = 10;

/** While it lasts, a failure is told again this often, in milliseconds. */
const WARN_EVERY_MS = 30_000;

/**
 * After a success, what no retry heals ends the process only when it comes this often in a row, for some seconds: a
 * server that restarts, or a password in the middle of a change, gives the same errors for a moment.
 */
const FATAL_IN_A_ROW = 10;

export interface HealthOptions {
  /** For people: `Postgres at db.example:5432`. Never with a password. */
  name: string;
  /** The longest wait between two attempts, in milliseconds. */
  ceilingMs: number;
  /** Tells what an error means, and whether a retry may heal it. */
  explain: (error: unknown) => Fault;
  log: Logger;
  /** Waits; ends early when the loader stops. */
  pause: (ms: number) => Promise<void>;
}

/** How a service that we depend on is doing: backs off when it fails, and tells people once rather than each time. */
export class Health {
  readonly #options: HealthOptions;
  #failures = 0;
  #wasWell = false;
  #warnedAt = Number.NEGATIVE_INFINITY;

  constructor(options: HealthOptions) {
    this.#options = options;
  }

  /** Whether the last thing it was asked for failed. */
  get failing(): boolean {
    return this.#failures > 0;
  }

  /** What an error means, and whether a retry may heal it. */
  explain(error: unknown): Fault {
    return this.#options.explain(error);
  }

  succeeded(): void {
    if (this.failing) this.#options.log.info(`${this.#options.name} answers again`);
    this.#failures = 0;
    this.#wasWell = true;
    this.#warnedAt = Number.NEGATIVE_INFINITY;
  }

  /**
   * Waits before the next attempt, the longer the more have failed in a row.
   *
   * @throws {FatalError} where no further attempt can succeed
   */
  async failed(error: unknown): Promise<void> {
    if (error instanceof FatalError) throw error;
    this.#failures += 1;
    const fault = this.explain(error);
    if (fault.fatal && (!this.#wasWell || this.#failures >= FATAL_IN_A_ROW)) throw new FatalError(fault.text);
    this.#warn(fault.text);
    await this.#options.pause(backoffMs(this.#failures, this.#options.ceilingMs));
  }

  #warn(cause: string): void {
    const now = performance.now();
    if (now - this.#warnedAt < WARN_EVERY_MS) return;
    this.#warnedAt = now;
    const fields = { cause, attempts: this.#failures };
    this.#options.log.warn(
      fields,
      `${this.#options.name} fails: nothing is received; trying again until it answers`,
    );
  }
}

/**
 * How long to wait after so many failures in a row: 10 ms, doubled each time up to the ceiling. Half of it is left
 * to chance, so that many loaders do not come back all at once.
 */
export function backoffMs(failures: number, ceilingMs: number): number {
  return Math.min(ceilingMs, FIRST_BACKOFF_MS * 2 ** (failures - 1)) * (0.5 + Math.random() / 2);
}
