import { randomUUID } from 'node:crypto';
import type { ReceivedMessage } from '../queue/receive.ts';

/** Messages that are staged together, in one transaction. */
export interface Batch {
  /** The same for each attempt to stage the batch, so that it is staged only once. */
  id: string;
  messages: ReceivedMessage[];
  /** The length of all bodies. */
  bytes: number;
}

export interface BatchLimits {
  rows: number;
  /** Of the bodies. A message that is longer is a batch of its own. */
  bytes: number;
  /** How long the first message of a batch waits for more, in milliseconds. */
  ms: number;
}

/**
 * Gathers messages into batches. A batch is ready when it is full, or when its first message has waited long enough.
 */
export class Batcher {
  readonly #limits: BatchLimits;
  readonly #onReady: () => void;
  readonly #full: Batch[] = [];
  #open: Batch | undefined;
  #openIsDue = false;
  #timer: NodeJS.Timeout | undefined;

  /** @param onReady called when `take` may return a batch */
  constructor(limits: BatchLimits, onReady: () => void) {
    this.#limits = limits;
    this.#onReady = onReady;
  }

  /** The batches that are not taken yet, including the open one. */
  get waiting(): Batch[] {
    return this.#open === undefined ? [...this.#full] : [...this.#full, this.#open];
  }

  add(messages: readonly ReceivedMessage[]): void {
    for (const message of messages) this.#addOne(message);
    if (this.#full.length > 0) this.#onReady();
  }

  /**
   * Takes a batch that is ready. A batch that is due but not full grows until it is taken. So when staging is slow,
   * batches get larger instead of more.
   */
  take(): Batch | undefined {
    const full = this.#full.shift();
    if (full !== undefined || !this.#openIsDue) return full;
    this.#close();
    return this.#full.shift();
  }

  /** Makes the open batch ready. */
  flush(): void {
    if (this.#open !== undefined) this.#openIsDue = true;
    this.#onReady();
  }

  #addOne(message: ReceivedMessage): void {
    if (this.#open !== undefined && this.#open.bytes + message.bytes > this.#limits.bytes) this.#close();
    if (this.#open === undefined) {
      this.#open = { id: randomUUID(), messages: [], bytes: 0 };
      this.#timer = setTimeout(() => this.flush(), this.#limits.ms);
    }
    this.#open.messages.push(message);
    this.#open.bytes += message.bytes;
    if (this.#open.messages.length >= this.#limits.rows) this.#close();
  }

  #close(): void {
    clearTimeout(this.#timer);
    if (this.#open !== undefined) this.#full.push(this.#open);
    this.#open = undefined;
    this.#openIsDue = false;
  }
}
