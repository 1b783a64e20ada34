import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import type pg from 'pg';
import type { Place } from './places.ts';

const SAMPLE_EVERY_MS = 25;

/** Records what exists only for a moment: running statements, command lines, errors. */
export class Recorder {
  readonly #activity = new Set<string>();
  readonly #commandLines = new Set<string>();
  readonly #errors: string[] = [];
  readonly #stop = new AbortController();
  #watch: Promise<void> = Promise.resolve();

  /**
   * Takes samples until `stop` is called.
   *
   * @param pids the processes whose command lines to record, with those of their children
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

  /** Records all properties of the error that a call throws, and returns its code; `none` if the call succeeds. */
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

  /** How much was recorded. A test must check that it is not empty. */
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
      // The process has ended.
    }
  }
}

/** All properties of a thrown value as text, including hidden and nested ones. */
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
