import type pg from 'pg';
import { MASKED_ROWS, numberOf, until } from './polling.ts';
import { RECOVERY_LIMIT_MS } from './protocol.ts';
import type { Supervised } from './supervised.ts';
import type { Traffic } from './traffic.ts';

/** How long work took to resume after a fault, from when everything was running again, in milliseconds. */
export interface Recovered {
  kind: string;
  /** Time until more messages were masked than before. */
  progressMs: number;
  /**
   * Time until every batch that was pending then was acknowledged or lost. If another fault came before that, the time
   * counts from when everything was running again after that fault. Null if that never happened.
   */
  backlogMs: number | null;
}

const CHECK_EVERY_MS = 250;
const PENDING = 'select batch_id from staging.batches where acked_at is null and lost_at is null';

/** Messages that are sent once everything runs again: only with work to do can it be seen to resume. */
const PROBE_MESSAGES = 40;

interface Context {
  superuser: pg.Pool;
  loader: Supervised;
  worker: Supervised;
  traffic: Traffic;
}

interface Measurement {
  recovered: Recovered;
  since: number;
  batches: Set<string>;
}

/** Measures how soon work resumes after a fault. */
export class Recovery {
  readonly all: Recovered[] = [];
  readonly #context: Context;
  readonly #timer: NodeJS.Timeout;
  #unfinished: Measurement[] = [];
  #isChecking = false;

  constructor(context: Context) {
    this.#context = context;
    this.#timer = setInterval(() => void this.#check(), CHECK_EVERY_MS);
  }

  /** Recoveries that took too long, or that did not finish. */
  get failures(): string[] {
    return this.all
      .filter(({ progressMs, backlogMs }) => isTooLong(progressMs) || isTooLong(backlogMs))
      .map(({ kind }) => `recovery from ${kind} took too long`);
  }

  /** Waits until everything runs, and then until work resumes. */
  async measure(kind: string): Promise<void> {
    const { superuser, loader, worker, traffic } = this.#context;
    const isRunning = async () =>
      loader.isAlive && worker.isAlive && (await superuser.query('select 1')).rowCount === 1;
    await until(isRunning);
    const since = performance.now();
    for (const measurement of this.#unfinished) measurement.since = since;
    const { rows } = await superuser.query<{ batch_id: string }>(PENDING);
    const masked = await numberOf(superuser, MASKED_ROWS);
    await traffic.send(PROBE_MESSAGES);
    // Twice the limit, so that the report has the time of a recovery that was too slow.
    await until(async () => (await numberOf(superuser, MASKED_ROWS)) > masked, 2 * RECOVERY_LIMIT_MS, 50);
    const recovered = { kind, progressMs: Math.round(performance.now() - since), backlogMs: null };
    this.all.push(recovered);
    this.#unfinished.push({ recovered, since, batches: new Set(rows.map((row) => row.batch_id)) });
    await this.#check();
  }

  /** Waits until all measurements are finished. */
  async settle(): Promise<void> {
    await until(() => this.#unfinished.length === 0, 2 * RECOVERY_LIMIT_MS);
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  async #check(): Promise<void> {
    if (this.#unfinished.length === 0 || this.#isChecking) return;
    this.#isChecking = true;
    try {
      const { rows } = await this.#context.superuser.query<{ batch_id: string }>(PENDING);
      const pending = new Set(rows.map((row) => row.batch_id));
      for (const { recovered, since, batches } of this.#unfinished) {
        if (batches.isDisjointFrom(pending)) recovered.backlogMs = Math.round(performance.now() - since);
      }
      this.#unfinished = this.#unfinished.filter(({ recovered }) => recovered.backlogMs === null);
    } catch {
      // Postgres is unavailable: the next call checks again.
    } finally {
      this.#isChecking = false;
    }
  }
}

function isTooLong(ms: number | null): boolean {
  return ms === null || ms > RECOVERY_LIMIT_MS;
}
