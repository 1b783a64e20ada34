import { randomUUID } from 'node:crypto';
import type { ReceivedMessage } from '../queue/receive.ts';

/** Messages that are staged together, in one transaction. */
export interface Batch {
  /** Stays the same however often staging is tried, so that no attempt stages it a second time. */
  id: string;
  messages: ReceivedMessage[];
  /** Sum of the bodies' lengths. */
  bytes: number;
}

export interface BatchLimits {
  rows: number;
  /** Of the bodies; one message that is longer makes a batch of its own. */
  bytes: number;
  /** How long the first message of a batch waits for others, in milliseconds. */
  ms: number;
}

/** Gathers messages into batches: a batch is ready when it is full, or when its first message has waited long enough. */
export class Batcher {
  readonly #limits: BatchLimits;
  readonly #onReady: () => void;
  readonly #full: Batch[] = [];
  #open: Batch | undefined;
  #openIsDue = false;
  #timer: NodeJS.Timeout | undefined;

  /** @param onReady called whenever `take` may have something to give */
  constructor(limits: BatchLimits, onReady: () => void) {
    this.#limits = limits;
    this.#onReady = onReady;
  }

  /** Batches not taken yet, the unfinished one included. */
  get waiting(): Batch[] {
    return this.#open === undefined ? [...this.#full] : [...this.#full, this.#open];
  }

  add(messages: readonly ReceivedMessage[]): void {
    for (const message of messages) this.#addOne(message);
    if (this.#full.length > 0) this.#onReady();
  }

  /**
   * Gives a batch that is ready. One that is only due, not full, goes on growing until it is taken: when staging is
   * slow, batches become larger rather than more.
   */
  take(): Batch | undefined {
    const full = this.#full.shift();
    if (full !== undefined || !this.#openIsDue) return full;
    this.#close();
    return this.#full.shift();
  }

  /** Makes ready what there is. */
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
