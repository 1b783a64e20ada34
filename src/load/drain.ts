import type { WaitingCounts } from '../queue/counts.ts';

/** Polls, or looks at the queue's counts, that find nothing, one after the other, before the queue may be empty. */
const EMPTY_IN_A_ROW = 3;

/**
 * Decides when a queue is empty. One empty answer proves nothing: SQS asks only some of its servers, and its counts
 * lag. So several polls in a row and the counts must agree. Messages in flight do not count: someone has them.
 */
export class Drain {
  readonly #count: () => Promise<WaitingCounts>;
  #empty = 0;

  constructor(count: () => Promise<WaitingCounts>) {
    this.#count = count;
  }

  /** Takes note of a poll that brought so many messages, and says whether the queue is empty. */
  async isOverAfter(received: number): Promise<boolean> {
    this.#empty = received === 0 ? this.#empty + 1 : 0;
    if (this.#empty < EMPTY_IN_A_ROW) return false;
    if (await this.#countsNothing()) return true;
    this.#empty = 0;
    return false;
  }

  /** The same while receiving is paused and there are only the counts to go by; to be called now and then. */
  async isOverWhilePaused(): Promise<boolean> {
    this.#empty = (await this.#countsNothing()) ? this.#empty + 1 : 0;
    return this.#empty >= EMPTY_IN_A_ROW;
  }

  async #countsNothing(): Promise<boolean> {
    const { visible, delayed } = await this.#count();
    return visible === 0 && delayed === 0;
  }
}
