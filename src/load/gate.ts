import type pg from 'pg';
import { FatalError } from '../errors.ts';
import type { Logger } from '../log.ts';
import { Throttle } from '../retry.ts';
import type { Stager } from './stager.ts';

/** Rows that are staged and not yet masked. */
export interface Backlog {
  rows: number;
  /** Age of the oldest, in seconds; 0 if there is none. */
  oldestSeconds: number;
}

/** How long an answer of the database is used, in milliseconds. */
const ANSWER_LASTS_MS = 1_000;

/**
 * How often to warn, in milliseconds. A loader that is faster than its worker pauses every few seconds, or all the
 * time.
 */
const WARN_EVERY_MS = 60_000;

/**
 * After it has closed, the gate opens when the backlog has shrunk to this share of the limit, so that it does not
 * flutter.
 */
const REOPEN_AT = 0.9;

/** How long to wait for the backlog, in milliseconds. */
const QUERY_TIMEOUT_MS = 10_000;

/** @throws any error of `pg` */
export async function readBacklog(pool: pg.Pool): Promise<Backlog> {
  const query = {
    text: 'select staged_rows, oldest_age_seconds from staging.backlog()',
    query_timeout: QUERY_TIMEOUT_MS,
  };
  const { rows } = await pool.query<{ staged_rows: string; oldest_age_seconds: number | null }>(query);
  return { rows: Number(rows[0]?.staged_rows ?? 0), oldestSeconds: rows[0]?.oldest_age_seconds ?? 0 };
}

export interface GateOptions {
  readBacklog: () => Promise<Backlog>;
  /** Its rows will be in the backlog soon. */
  stager: Pick<Stager, 'rows' | 'batchesStaged'>;
  maxRows: number;
  /** Half of the visibility timeout: a message that waits longer is delivered again before it is deleted. */
  maxAgeSeconds: number;
  /**
   * The loader gives up if the backlog does not shrink for this long, in milliseconds. If it is absent, it never
   * does.
   */
  giveUpAfterMs?: number | undefined;
  log: Logger;
}

/** Decides whether the loader may receive: not while too many rows wait to be masked, or one waits for too long. */
export class Gate {
  readonly #options: GateOptions;
  readonly #warnings = new Throttle(WARN_EVERY_MS);
  #backlog: Backlog = { rows: 0, oldestSeconds: 0 };
  /** When the backlog was read, and how many batches had been staged before. */
  #read = { at: Number.NEGATIVE_INFINITY, batchesStaged: 0 };
  #reading: Promise<Backlog> | undefined;
  #isOpen = true;
  #isPauseLogged = false;
  /** The smallest backlog since the gate closed, and when it was read. */
  #least = { rows: Number.POSITIVE_INFINITY, at: 0 };

  constructor(options: GateOptions) {
    this.#options = options;
  }

  /**
   * Whether messages may be received. Reads the backlog if its last value is too old, or if a batch was staged since.
   *
   * @throws {FatalError} if nothing was masked for `giveUpAfterMs`
   * @throws any error of `pg`
   */
  async isOpen(): Promise<boolean> {
    if (this.#isOutdated()) {
      // Pollers that ask at the same time share one query.
      this.#reading ??= this.#readBacklog();
      this.#backlog = await this.#reading;
    }
    this.#decide();
    return this.#isOpen;
  }

  #isOutdated(): boolean {
    const { at, batchesStaged } = this.#read;
    return performance.now() - at >= ANSWER_LASTS_MS || batchesStaged !== this.#options.stager.batchesStaged;
  }

  async #readBacklog(): Promise<Backlog> {
    const { readBacklog, stager } = this.#options;
    const { batchesStaged } = stager;
    try {
      const backlog = await readBacklog();
      this.#read = { at: performance.now(), batchesStaged };
      return backlog;
    } finally {
      this.#reading = undefined;
    }
  }

  #decide(): void {
    const { stager, maxRows, maxAgeSeconds, log } = this.#options;
    const { rows, oldestSeconds } = this.#backlog;
    const limit = this.#isOpen ? maxRows : maxRows * REOPEN_AT;
    const isOpen = rows + stager.rows < limit && (rows === 0 || oldestSeconds <= maxAgeSeconds);
    if (isOpen !== this.#isOpen) {
      this.#least = { rows: Number.POSITIVE_INFINITY, at: 0 };
      if (isOpen && this.#isPauseLogged) log.info(this.#fields(), 'receiving again');
      this.#isPauseLogged = false;
    }
    this.#isOpen = isOpen;
    if (!isOpen) this.#pause();
  }

  #pause(): void {
    const { log, giveUpAfterMs = Number.POSITIVE_INFINITY } = this.#options;
    const now = performance.now();
    if (this.#backlog.rows < this.#least.rows) this.#least = { rows: this.#backlog.rows, at: now };
    if (now - this.#least.at >= giveUpAfterMs) {
      throw new FatalError(
        `no staged row was masked for ${Math.round((now - this.#least.at) / 1_000)} s, and LOAD_RETRY_TIMEOUT_SECONDS is over: ` +
          'start a worker, and load again; nothing is lost',
      );
    }
    if (!this.#warnings.pass()) return;
    this.#isPauseLogged = true;
    log.warn(
      this.#fields(),
      'paused: too many rows wait to be masked, or one waits too long; if no worker runs, start one: masked-logins worker',
    );
  }

  #fields(): { stagedRows: number; oldestSeconds: number } {
    return { stagedRows: this.#backlog.rows, oldestSeconds: Math.round(this.#backlog.oldestSeconds) };
  }
}
