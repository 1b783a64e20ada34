import type { Batch, Batcher } from './batcher.ts';
import type { Health } from './health.ts';
import type { Stop } from './stop.ts';

/** Batches being staged at once: one that commits while the next is copied. More only wait for one another. */
export const LANES = 2;

export interface LanesOptions {
  batcher: Batcher;
  stage: (batch: Batch) => Promise<void>;
  health: Health;
  stop: Stop;
  onStaged: (batch: Batch) => void;
}

/** Takes batches from the batcher and stages them, each until it is staged or the loader stops. */
export class Lanes {
  readonly #options: LanesOptions;
  readonly #underWay = new Set<Promise<void>>();
  readonly #held = new Set<Batch>();
  readonly #retrying = new Set<Batch>();

  constructor(options: LanesOptions) {
    this.#options = options;
  }

  /** Batches that were taken and are not staged: under way, or given up when the loader was told to stop. */
  get held(): Batch[] {
    return [...this.#held];
  }

  /** Whether a batch has failed and is not staged yet: waiting for its next attempt, or in it. */
  get isRetrying(): boolean {
    return this.#retrying.size > 0;
  }

  /** Starts what can be started. */
  pump(): void {
    while (this.#underWay.size < LANES) {
      const batch = this.#options.batcher.take();
      if (batch === undefined) return;
      this.#held.add(batch);
      const lane = this.#run(batch).finally(() => {
        this.#underWay.delete(lane);
        this.pump();
      });
      this.#underWay.add(lane);
    }
  }

  /** Ends when nothing is under way any more. */
  async idle(): Promise<void> {
    while (this.#underWay.size > 0) await Promise.all(this.#underWay);
  }

  async #run(batch: Batch): Promise<void> {
    const { stage, health, stop, onStaged } = this.#options;
    try {
      for (;;) {
        const failure = await attempt(() => stage(batch));
        if (failure === undefined) break;
        // One attempt that fails after the loader was told to stop is the last: the messages go back to the queue.
        if (stop.isRequested) return;
        this.#retrying.add(batch);
        await health.failed(failure.error);
      }
      this.#retrying.delete(batch);
      this.#held.delete(batch);
      health.succeeded();
      onStaged(batch);
    } catch (error) {
      stop.request(error);
    }
  }
}

async function attempt(action: () => Promise<void>): Promise<{ error: unknown } | undefined> {
  try {
    await action();
    return undefined;
  } catch (error) {
    return { error };
  }
}
