import { randomBytes } from 'node:crypto';
import type { Canaries } from './needles.ts';

/** Unique values by name, to be searched for later. */
export class CanarySet {
  readonly #values = new Map<string, string | Buffer>();

  get all(): Canaries {
    return this.#values;
  }

  /** A text without characters that need escaping. */
  text(name: string): string {
    return this.#add(name, randomBytes(14).toString('hex'));
  }

  /** An IPv6 address in canonical form. The binary form that `inet` stores is a canary as well. */
  address(name: string): string {
    const groups = Array.from({ length: 7 }, () => `1${randomBytes(2).toString('hex').slice(1)}`);
    const text = `fd00:${groups.join(':')}`;
    this.#add(`${name}, as inet`, Buffer.from(text.replaceAll(':', ''), 'hex'));
    return this.#add(name, text);
  }

  /** A key of 32 bytes. */
  key(name: string): Buffer {
    return this.#add(name, randomBytes(32));
  }

  /** Adds a value that exists already. */
  add(name: string, value: string | Buffer): void {
    this.#add(name, value);
  }

  #add<T extends string | Buffer>(name: string, value: T): T {
    if (this.#values.has(name)) throw new Error(`a canary with this name exists already: ${name}`);
    this.#values.set(name, value);
    return value;
  }
}
