import type { ReceivedMessage } from '../queue/receive.ts';
import { pause } from '../wait.ts';
import { type Batch, Batcher, type BatchLimits } from './batcher.ts';
import type { Health } from './health.ts';
import type { Stop } from './stop.ts';

/** How many batches are staged at the same time: one commits while the next one is copied. More would only wait. */
export const LANES = 2;

export interface StagerOptions {
  limits: BatchLimits;
  /** Stages one batch. It is called again with the same batch until it succeeds. */
  stage: (batch: Batch) => Promise<void>;
  /** The health of the database that `stage` writes to. */
  health: Health;
  /** Requested by the stager if a batch cannot be staged at all. */
  stop: Stop;
  onStaged: (batch: Batch) => void;
}

/** Gathers messages into batches and stages each batch, until the loader stops. */
export class Stager {
  readonly #options: StagerOptions;
  readonly #batcher: Batcher;
  readonly #lanes = new Set<Promise<void>>();
  /** Batches that a lane has taken and not staged. If the loader stops, they stay here. */
  readonly #taken = new Set<Batch>();
  readonly #retrying = new Set<Batch>();
  #batchesStaged = 0;
  #nextStaged = new AbortController();

  constructor(options: StagerOptions) {
    this.#options = options;
    this.#batcher = new Batcher(options.limits, () => this.#fillLanes());
  }

  /** Takes messages that were received. It never refuses any: the caller looks at `hasRoom` before it receives. */
  add(messages: readonly ReceivedMessage[]): void {
    this.#batcher.add(messages);
  }

  /** The batches that were received and are not staged. */
  get unstaged(): Batch[] {
    return [...this.#taken, ...this.#batcher.waiting];
  }

  /** How many messages were received and are not staged. */
  get rows(): number {
    return this.unstaged.reduce((sum, batch) => sum + batch.messages.length, 0);
  }

  /** Whether less than one batch for each lane is in memory. Polls under way may bring more. */
  get hasRoom(): boolean {
    const { rows, bytes } = this.#options.limits;
    const bytesHeld = this.unstaged.reduce((sum, batch) => sum + batch.bytes, 0);
    return this.rows < LANES * rows && bytesHeld < LANES * bytes;
  }

  /** Whether a batch has failed and is not staged yet. */
  get isRetrying(): boolean {
    return this.#retrying.size > 0;
  }

  /** How many batches have been staged. A figure of the database that is older than the last one is out of date. */
  get batchesStaged(): number {
    return this.#batchesStaged;
  }

  /** Waits until a batch is staged, the loader stops, or `ms` milliseconds are over. */
  async waitForRoom(ms: number): Promise<void> {
    await pause(ms, AbortSignal.any([this.#nextStaged.signal, this.#options.stop.signal]));
  }

  /** Stages all that was added. Returns when nothing is under way; what could not be staged is in `unstaged`. */
  async finish(): Promise<void> {
    this.#batcher.flush();
    while (this.#lanes.size > 0) await Promise.all(this.#lanes);
  }

  #fillLanes(): void {
    while (this.#lanes.size < LANES) {
      const batch = this.#batcher.take();
      if (batch === undefined) return;
      this.#taken.add(batch);
      const lane = this.#stage(batch).finally(() => {
        this.#lanes.delete(lane);
        this.#fillLanes();
      });
      this.#lanes.add(lane);
    }
  }

  async #stage(batch: Batch): Promise<void> {
    const { health, stop, onStaged } = this.#options;
    try {
      if (!(await this.#isStaged(batch))) return;
      this.#retrying.delete(batch);
      this.#taken.delete(batch);
      this.#batchesStaged += 1;
      health.succeeded();
      onStaged(batch);
      this.#nextStaged.abort();
      this.#nextStaged = new AbortController();
    } catch (error) {
      stop.request(error);
    }
  }

  /** Tries until the batch is staged. Returns false if an attempt failed after the loader was stopped. */
  async #isStaged(batch: Batch): Promise<boolean> {
    const { stage, health, stop } = this.#options;
    for (;;) {
      try {
        await stage(batch);
        return true;
      } catch (error) {
        if (stop.isRequested) return false;
        this.#retrying.add(batch);
        await health.failed(error);
      }
    }
  }
}
