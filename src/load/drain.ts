import type { WaitingCounts } from '../queue/counts.ts';

/** How many polls or counts in a row must find nothing before the queue may be empty. */
const EMPTY_IN_A_ROW = 3;

/**
 * Decides when a queue is empty. One empty answer is not enough, because SQS asks only some of its servers, and its
 * counts lag. So several polls in a row must be empty, and the counts must be 0. Messages in flight are not counted,
 * because another process has them.
 */
export class Drain {
  readonly #count: () => Promise<WaitingCounts>;
  #empty = 0;

  constructor(count: () => Promise<WaitingCounts>) {
    this.#count = count;
  }

  /** Whether the queue is empty after a poll that returned this many messages. */
  async isOverAfter(received: number): Promise<boolean> {
    this.#empty = received === 0 ? this.#empty + 1 : 0;
    if (this.#empty < EMPTY_IN_A_ROW) return false;
    if (await this.#countsNothing()) return true;
    this.#empty = 0;
    return false;
  }

  /** The same while receiving is paused, by the counts alone. To be called repeatedly, with time between the calls. */
  async isOverWhilePaused(): Promise<boolean> {
    this.#empty = (await this.#countsNothing()) ? this.#empty + 1 : 0;
    return this.#empty >= EMPTY_IN_A_ROW;
  }

  async #countsNothing(): Promise<boolean> {
    const { visible, delayed } = await this.#count();
    return visible === 0 && delayed === 0;
  }
}
