import { FatalError, type Fault } from '../errors.ts';
import type { Logger } from '../log.ts';
import { backoffMs } from '../retry.ts';

const FIRST_BACKOFF_MS = 10;

/** How often a failure is logged while it lasts, in milliseconds. */
const WARN_EVERY_MS = 30_000;

/**
 * After a success, an error that no retry can fix ends the process only if it occurs this often in a row, which takes
 * some seconds: a server that restarts, or a password that is being changed, causes the same errors for a moment.
 */
const FATAL_IN_A_ROW = 10;

export interface HealthOptions {
  /** For people: `Postgres at db.example:5432`. Never with a password. */
  name: string;
  /** The longest wait between two attempts, in milliseconds. */
  ceilingMs: number;
  /** What an error means, and whether a retry can fix it. */
  explain: (error: unknown) => Fault;
  /** How long the service may fail before the loader gives up, in milliseconds. If it is absent, it never does. */
  giveUpAfterMs?: number | undefined;
  log: Logger;
  /** Waits; ends early when the loader stops. */
  pause: (ms: number) => Promise<void>;
}

/** The health of a service that the loader needs: waits after failures, and logs now and then instead of each time. */
export class Health {
  readonly #options: HealthOptions;
  #failures = 0;
  #failingSince = 0;
  #lastCause = '';
  #hasSucceeded = false;
  #warnings: NodeJS.Timeout | undefined;

  constructor(options: HealthOptions) {
    this.#options = options;
  }

  /** Whether the last request failed. */
  get failing(): boolean {
    return this.#failures > 0;
  }

  /** What an error means, and whether a retry can fix it. */
  explain(error: unknown): Fault {
    return this.#options.explain(error);
  }

  succeeded(): void {
    const { log, name } = this.#options;
    if (this.failing)
      log.info({ attempts: this.#failures, seconds: this.#seconds() }, `${name} answers again`);
    this.#failures = 0;
    this.#hasSucceeded = true;
    this.end();
  }

  /**
   * Waits before the next attempt. The wait grows with the number of failures in a row.
   *
   * @throws {FatalError} if no retry can fix the error, or the service has failed for `giveUpAfterMs`
   */
  async failed(error: unknown): Promise<void> {
    if (error instanceof FatalError) throw error;
    const { name, ceilingMs, giveUpAfterMs = Number.POSITIVE_INFINITY, pause } = this.#options;
    if (!this.failing) this.#failingSince = performance.now();
    this.#failures += 1;
    const fault = this.explain(error);
    this.#lastCause = fault.text;
    if (fault.fatal && (!this.#hasSucceeded || this.#failures >= FATAL_IN_A_ROW))
      throw new FatalError(fault.text);
    const leftMs = this.#failingSince + giveUpAfterMs - performance.now();
    if (leftMs <= 0) {
      throw new FatalError(
        `${name} has failed for ${this.#seconds()} s (${fault.text}), and LOAD_RETRY_TIMEOUT_SECONDS is over: ` +
          'fix it, and load again; nothing is lost',
      );
    }
    // A timer, because an attempt may hang.
    if (this.#warnings === undefined) {
      this.#warn();
      this.#warnings = setInterval(() => this.#warn(), WARN_EVERY_MS).unref();
    }
    await pause(Math.min(backoffMs(this.#failures, { firstMs: FIRST_BACKOFF_MS, ceilingMs }), leftMs));
  }

  /** Ends the warnings. To be called when the service is no longer needed. */
  end(): void {
    clearInterval(this.#warnings);
    this.#warnings = undefined;
  }

  #warn(): void {
    const { name, giveUpAfterMs, log } = this.#options;
    const fields = { cause: this.#lastCause, attempts: this.#failures, seconds: this.#seconds() };
    const until = giveUpAfterMs === undefined ? '' : ` or ${giveUpAfterMs / 1_000} s are over`;
    log.warn(fields, `${name} fails: nothing is received; retrying until it answers${until}`);
  }

  /** How long it has been failing. */
  #seconds(): number {
    return Math.round((performance.now() - this.#failingSince) / 1_000);
  }
}
