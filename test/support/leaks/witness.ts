import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import type pg from 'pg';
import type { Place } from './places.ts';

const SAMPLE_EVERY_MS = 25;

/** Notes what is there for a moment only: statements under way, command lines, errors. */
export class Witness {
  readonly #activity = new Set<string>();
  readonly #commandLines = new Set<string>();
  readonly #errors: string[] = [];
  readonly #stop = new AbortController();
  #watch: Promise<void> = Promise.resolve();

  /**
   * Samples until `stop`.
   *
   * @param pids of the processes whose command lines, and whose children's, to read
   */
  watch(superuser: pg.Pool, pids: () => number[]): void {
    this.#watch = (async () => {
      while (!this.#stop.signal.aborted) {
        await this.#sampleActivity(superuser).catch(() => {});
        for (const pid of pids()) this.#sampleCommandLines(pid);
        await sleep(SAMPLE_EVERY_MS);
      }
    })();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#watch;
  }

  /** Notes what a call throws, whatever that carries, and returns its code; `none` where it succeeds. */
  async codeOf(call: Promise<unknown> | (() => unknown)): Promise<string> {
    try {
      await (typeof call === 'function' ? call() : call);
      return 'none';
    } catch (error) {
      this.#errors.push(everythingIn(error));
      const { code, name } = error as { code?: string; name?: string };
      return code ?? name ?? 'no code';
    }
  }

  *places(): Generator<Place> {
    yield { place: 'pg_stat_activity', bytes: Buffer.from([...this.#activity].join('\n')) };
    yield { place: 'command lines', bytes: Buffer.from([...this.#commandLines].join('\n')) };
    yield { place: 'errors', bytes: Buffer.from(this.#errors.join('\n')) };
  }

  /** How much was seen: a witness that looked away proves nothing. */
  get seen(): { activity: number; commandLines: number; errors: number } {
    return {
      activity: this.#activity.size,
      commandLines: this.#commandLines.size,
      errors: this.#errors.length,
    };
  }

  async #sampleActivity(superuser: pg.Pool): Promise<void> {
    const { rows } = await superuser.query<{ seen: string }>(
      `select distinct concat_ws(' ', application_name, backend_type, query) as seen from pg_stat_activity`,
    );
    for (const { seen } of rows) this.#activity.add(seen);
  }

  #sampleCommandLines(pid: number): void {
    try {
      this.#commandLines.add(readFileSync(`/proc/${pid}/cmdline`, 'latin1'));
      const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'latin1').trim();
      for (const child of children === '' ? [] : children.split(' ')) {
        this.#sampleCommandLines(Number(child));
      }
    } catch {
      // It has ended meanwhile.
    }
  }
}

/** Everything that hangs on something thrown: all own properties, hidden ones too, and theirs. */
export function everythingIn(thrown: unknown): string {
  const seen = new Set<unknown>();
  const parts: string[] = [];
  const walk = (value: unknown): void => {
    if (value === null || seen.has(value)) return;
    if (typeof value !== 'object' && typeof value !== 'function') {
      parts.push(String(value));
      return;
    }
    seen.add(value);
    if (value instanceof Uint8Array) {
      parts.push(Buffer.from(value).toString('hex'));
      return;
    }
    for (const key of Reflect.ownKeys(value)) {
      parts.push(String(key));
      walk(Object.getOwnPropertyDescriptor(value, key)?.value);
    }
  };
  walk(thrown);
  return parts.join('\n');
}
