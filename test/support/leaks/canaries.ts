import { randomBytes } from 'node:crypto';
import type { Canaries } from './needles.ts';

/** Unique values under names, to be looked for later. */
export class CanaryBook {
  readonly #values = new Map<string, string | Buffer>();

  get all(): Canaries {
    return this.#values;
  }

  /** Some text, of characters that nothing escapes. */
  text(name: string): string {
    return this.#keep(name, randomBytes(14).toString('hex'));
  }

  /** An IPv6 address in its canonical form already; looked for in its binary form, too, as `inet` keeps it. */
  address(name: string): string {
    const groups = Array.from({ length: 7 }, () => `1${randomBytes(2).toString('hex').slice(1)}`);
    const text = `fd00:${groups.join(':')}`;
    this.#keep(`${name}, as inet`, Buffer.from(text.replaceAll(':', ''), 'hex'));
    return this.#keep(name, text);
  }

  /** 32 bytes. */
  key(name: string): Buffer {
    return this.#keep(name, randomBytes(32));
  }

  /** A value that was made elsewhere. */
  keep(name: string, value: string | Buffer): void {
    this.#keep(name, value);
  }

  #keep<T extends string | Buffer>(name: string, value: T): T {
    if (this.#values.has(name)) throw new Error(`there is a canary of this name already: ${name}`);
    this.#values.set(name, value);
    return value;
  }
}
