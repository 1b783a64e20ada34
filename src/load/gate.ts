import type pg from 'pg';
import { FatalError } from '../errors.ts';
import type { Logger } from '../log.ts';

/** Rows that are staged and not yet masked. */
export interface Backlog {
  rows: number;
  /** Age of the oldest, in seconds; 0 where there is none. */
  oldestSeconds: number;
}

/** How long an answer of the database counts, in milliseconds. */
const ANSWER_COUNTS_MS = 1_000;

/** A loader that is ahead of its worker pauses every few seconds, or stays paused; it tells so this often, in milliseconds. */
const WARN_EVERY_MS = 60_000;

/** Once shut, the gate opens when the backlog has shrunk to this share of the ceiling: else it would flutter. */
const REOPEN_AT = 0.9;

/** How long to wait for the backlog figure, in milliseconds. */
const QUERY_TIMEOUT_MS = 10_000;

/** @throws whatever `pg` throws */
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
  /** Rows received and not yet staged: they will be in the backlog soon. */
  rowsInMemory: () => number;
  maxRows: number;
  /** Past half of the visibility timeout: what waits longer is delivered again before it is deleted. */
  maxAgeSeconds: number;
  /** How long the backlog may stand still before the loader gives up, in milliseconds; absent where it never does. */
  giveUpAfterMs?: number | undefined;
  log: Logger;
}

/** Shut while too much waits to be masked. */
export class Gate {
  readonly #options: GateOptions;
  #backlog: Backlog = { rows: 0, oldestSeconds: 0 };
  #askedAt = Number.NEGATIVE_INFINITY;
  #asking: Promise<Backlog> | undefined;
  #isOpen = true;
  #warnedAt = Number.NEGATIVE_INFINITY;
  #toldOfPause = false;
  /** The smallest backlog since it was shut, and when that was seen. */
  #least = { rows: Number.POSITIVE_INFINITY, at: 0 };

  constructor(options: GateOptions) {
    this.#options = options;
  }

  /**
   * Whether messages may be received. Asks the database where its last answer does not count any more.
   *
   * @throws {FatalError} where nothing has been masked for `giveUpAfterMs`; whatever `pg` throws
   */
  async isOpen(): Promise<boolean> {
    if (performance.now() - this.#askedAt >= ANSWER_COUNTS_MS) {
      // Pollers that ask at the same time share one query.
      this.#asking ??= this.#options.readBacklog().finally(() => (this.#asking = undefined));
      this.#backlog = await this.#asking;
      this.#askedAt = performance.now();
    }
    this.#decide();
    return this.#isOpen;
  }

  /** Says that the database's last answer does not count any more: something was staged. */
  expire(): void {
    this.#askedAt = Number.NEGATIVE_INFINITY;
  }

  #decide(): void {
    const { rowsInMemory, maxRows, maxAgeSeconds } = this.#options;
    const { rows, oldestSeconds } = this.#backlog;
    const ceiling = this.#isOpen ? maxRows : maxRows * REOPEN_AT;
    const isOpen = rows + rowsInMemory() < ceiling && (rows === 0 || oldestSeconds <= maxAgeSeconds);
    if (isOpen !== this.#isOpen) {
      this.#least = { rows: Number.POSITIVE_INFINITY, at: 0 };
      if (isOpen && this.#toldOfPause) this.#options.log.info(this.#fields(), 'receiving again');
      this.#toldOfPause = false;
    }
    this.#isOpen = isOpen;
    if (!isOpen) this.#paused();
  }

  #paused(): void {
    const { log, giveUpAfterMs = Number.POSITIVE_INFINITY } = this.#options;
    const now = performance.now();
    if (this.#backlog.rows < this.#least.rows) this.#least = { rows: this.#backlog.rows, at: now };
    if (now - this.#least.at >= giveUpAfterMs) {
      throw new FatalError(
        `no staged row was masked for ${Math.round((now - this.#least.at) / 1_000)} s, and LOAD_RETRY_TIMEOUT_SECONDS is over: ` +
          'start a worker, and load again; nothing is lost',
      );
    }
    if (now - this.#warnedAt < WARN_EVERY_MS) return;
    this.#warnedAt = now;
    this.#toldOfPause = true;
    log.warn(
      this.#fields(),
      'paused: too many rows wait to be masked, or for too long; if no worker is running, start one: masked-logins worker',
    );
  }

  #fields(): { stagedRows: number; oldestSeconds: number } {
    return { stagedRows: this.#backlog.rows, oldestSeconds: Math.round(this.#backlog.oldestSeconds) };
  }
}
