import type pg from 'pg';
import { MASKED_ROWS, numberOf, until } from './asking.ts';
import { RECOVERY_LIMIT_MS } from './protocol.ts';
import type { Supervised } from './supervised.ts';
import type { Traffic } from './traffic.ts';

/** How long after a kill work went on, counted from when everything was running again; in milliseconds. */
export interface Recovered {
  kind: string;
  /** Until more messages were masked than before. */
  progressMs: number;
  /**
   * Until every batch that was pending then was acknowledged or found lost. Where something else was killed before that,
   * counted from when everything was running again after it. Null: it never came to that.
   */
  backlogMs: number | null;
}

const LOOK_EVERY_MS = 250;
const PENDING = 'select batch_id from staging.batches where acked_at is null and lost_at is null';

/** Messages sent once everything runs again: without work nobody could say whether it goes on. */
const PROBES = 40;

interface Site {
  superuser: pg.Pool;
  loader: Supervised;
  worker: Supervised;
  traffic: Traffic;
}

interface Watched {
  recovered: Recovered;
  since: number;
  batches: Set<string>;
}

/** Measures how soon work goes on after something was killed. */
export class Recovery {
  readonly all: Recovered[] = [];
  readonly #site: Site;
  readonly #timer: NodeJS.Timeout;
  #watched: Watched[] = [];
  #isLooking = false;

  constructor(site: Site) {
    this.#site = site;
    this.#timer = setInterval(() => void this.#look(), LOOK_EVERY_MS);
  }

  /** Measurements that took longer than is promised, or never came to an end. */
  get failures(): string[] {
    return this.all
      .filter(({ progressMs, backlogMs }) => isTooLong(progressMs) || isTooLong(backlogMs))
      .map(({ kind }) => `recovery from ${kind} took too long`);
  }

  /** Waits until everything runs, and then until work goes on. */
  async measure(kind: string): Promise<void> {
    const { superuser, loader, worker, traffic } = this.#site;
    const isRunning = async () =>
      loader.isAlive && worker.isAlive && (await superuser.query('select 1')).rowCount === 1;
    await until(isRunning);
    const since = performance.now();
    for (const watched of this.#watched) watched.since = since;
    const { rows } = await superuser.query<{ batch_id: string }>(PENDING);
    const masked = await numberOf(superuser, MASKED_ROWS);
    await traffic.send(PROBES);
    // Twice the limit, so that what is too slow is told with its time.
    await until(async () => (await numberOf(superuser, MASKED_ROWS)) > masked, 2 * RECOVERY_LIMIT_MS, 50);
    const recovered = { kind, progressMs: Math.round(performance.now() - since), backlogMs: null };
    this.all.push(recovered);
    this.#watched.push({ recovered, since, batches: new Set(rows.map((row) => row.batch_id)) });
    await this.#look();
  }

  /** Waits until what is measured has come to an end. */
  async settle(): Promise<void> {
    await until(() => this.#watched.length === 0, 2 * RECOVERY_LIMIT_MS);
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  async #look(): Promise<void> {
    if (this.#watched.length === 0 || this.#isLooking) return;
    this.#isLooking = true;
    try {
      const { rows } = await this.#site.superuser.query<{ batch_id: string }>(PENDING);
      const pending = new Set(rows.map((row) => row.batch_id));
      for (const { recovered, since, batches } of this.#watched) {
        if (batches.isDisjointFrom(pending)) recovered.backlogMs = Math.round(performance.now() - since);
      }
      this.#watched = this.#watched.filter(({ recovered }) => recovered.backlogMs === null);
    } catch {
      // Postgres is away: nothing can be seen until it is back.
    } finally {
      this.#isLooking = false;
    }
  }
}

function isTooLong(ms: number | null): boolean {
  return ms === null || ms > RECOVERY_LIMIT_MS;
}
