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
  /** How long it may fail before the loader gives up, in milliseconds; absent where the loader never does. */
  giveUpAfterMs?: number | undefined;
  log: Logger;
  /** Waits; ends early when the loader stops. */
  pause: (ms: number) => Promise<void>;
}

/** How a service that we depend on is doing: backs off when it fails, and tells people now and then rather than each time. */
export class Health {
  readonly #options: HealthOptions;
  #failures = 0;
  #failingSince = 0;
  #lastCause = '';
  #wasWell = false;
  #warnings: NodeJS.Timeout | undefined;

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
    const { log, name } = this.#options;
    if (this.failing)
      log.info({ attempts: this.#failures, seconds: this.#seconds() }, `${name} answers again`);
    this.#failures = 0;
    this.#wasWell = true;
    this.end();
  }

  /**
   * Waits before the next attempt, the longer the more have failed in a row.
   *
   * @throws {FatalError} where no further attempt can succeed, or it has failed for `giveUpAfterMs`
   */
  async failed(error: unknown): Promise<void> {
    if (error instanceof FatalError) throw error;
    const { name, ceilingMs, giveUpAfterMs = Number.POSITIVE_INFINITY, pause } = this.#options;
    if (!this.failing) this.#failingSince = performance.now();
    this.#failures += 1;
    const fault = this.explain(error);
    this.#lastCause = fault.text;
    if (fault.fatal && (!this.#wasWell || this.#failures >= FATAL_IN_A_ROW)) throw new FatalError(fault.text);
    const leftMs = this.#failingSince + giveUpAfterMs - performance.now();
    if (leftMs <= 0) {
      throw new FatalError(
        `${name} has failed for ${this.#seconds()} s (${fault.text}), and LOAD_RETRY_TIMEOUT_SECONDS is over: ` +
          'see that it is well, and load again; nothing is lost',
      );
    }
    // By a timer: an attempt that hangs is told of too.
    if (this.#warnings === undefined) {
      this.#warn();
      this.#warnings = setInterval(() => this.#warn(), WARN_EVERY_MS).unref();
    }
    await pause(Math.min(backoffMs(this.#failures, ceilingMs), leftMs));
  }

  /** To be called when nothing more is asked of the service: it says nothing more. */
  end(): void {
    clearInterval(this.#warnings);
    this.#warnings = undefined;
  }

  #warn(): void {
    const { name, giveUpAfterMs, log } = this.#options;
    const fields = { cause: this.#lastCause, attempts: this.#failures, seconds: this.#seconds() };
    const until = giveUpAfterMs === undefined ? '' : ` or ${giveUpAfterMs / 1_000} s are over`;
    log.warn(fields, `${name} fails: nothing is received; trying again until it answers${until}`);
  }

  /** For how long it has been failing. */
  #seconds(): number {
    return Math.round((performance.now() - this.#failingSince) / 1_000);
  }
}

/**
 * How long to wait after so many failures in a row: 10 ms, doubled each time up to the ceiling. Half of it is left
 * to chance, so that many loaders do not come back all at once.
 */
export function backoffMs(failures: number, ceilingMs: number): number {
  return Math.min(ceilingMs, FIRST_BACKOFF_MS * 2 ** (failures - 1)) * (0.5 + Math.random() / 2);
}
