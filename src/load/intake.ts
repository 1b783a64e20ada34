import type { Settings } from '../config.ts';
import { FatalError } from '../errors.ts';
import { RECEIVE_MAX, type ReceivedMessage } from '../queue/receive.ts';
import type { Batch, Batcher } from './batcher.ts';
import type { Drain } from './drain.ts';
import type { Gate } from './gate.ts';
import type { Health } from './health.ts';
import { LANES, type Lanes } from './lanes.ts';
import type { Turn } from './pollers.ts';
import type { Stop } from './stop.ts';
import { Wakeup } from './wakeup.ts';

/** How often it is looked again whether messages may be received, in milliseconds. */
const LOOK_AGAIN_MS = 1_000;

export interface IntakeOptions {
  settings: Settings;
  /** One long poll. */
  receive: () => Promise<ReceivedMessage[]>;
  /** How long SQS may take to answer it, in seconds. */
  waitTimeSeconds: number;
  onReceived: (messages: ReceivedMessage[]) => void;
  batcher: Batcher;
  lanes: Lanes;
  gate: Gate;
  /** Absent where the loader does not end with the queue's end. */
  drain: Drain | undefined;
  postgres: Health;
  sqs: Health;
  stop: Stop;
}

/** What a poller does, turn by turn: it receives when there is room in memory, Postgres is well and the gate is open. */
export class Intake {
  readonly #options: IntakeOptions;
  readonly #room = new Wakeup();
  /** When each poll under way has to be over at the latest. */
  readonly #polls = new Set<{ endsAt: number }>();
  #isDrained = false;
  #lookedAt = 0;

  constructor(options: IntakeOptions) {
    this.#options = options;
    void options.stop.requested.then(() => this.#room.wake());
  }

  /** Batches in memory that are not staged. */
  get unstaged(): Batch[] {
    return [...this.#options.lanes.held, ...this.#options.batcher.waiting];
  }

  /** How long the polls under way may still take, in milliseconds; 0 where there are none. */
  get pollsLeftMs(): number {
    const now = performance.now();
    return Math.max(0, ...[...this.#polls].map(({ endsAt }) => endsAt - now));
  }

  /** To be called when a batch has been staged: there may be room again, and the backlog has grown. */
  staged(): void {
    this.#options.gate.expire();
    this.#room.wake();
  }

  /** @throws {FatalError} for what no retry heals */
  async turn(): Promise<Turn> {
    if (this.#isOver()) return 'over';
    if (!this.#hasRoom()) {
      await this.#room.wait(LOOK_AGAIN_MS);
      return 'waited';
    }
    if (!(await this.#mayReceive())) return this.#paused();
    return this.#isOver() ? 'over' : this.#poll();
  }

  async #poll(): Promise<Turn> {
    const { onReceived, batcher, sqs } = this.#options;
    try {
      const messages = await this.#receive();
      sqs.succeeded();
      batcher.add(messages);
      onReceived(messages);
      if (await this.#drainSays((drain) => drain.isOverAfter(messages.length))) return 'over';
      if (messages.length === 0) return 'empty';
      return messages.length === RECEIVE_MAX ? 'full' : 'some';
    } catch (error) {
      return this.#failed(error);
    }
  }

  async #receive(): Promise<ReceivedMessage[]> {
    const { receive, waitTimeSeconds } = this.#options;
    const poll = { endsAt: performance.now() + waitTimeSeconds * 1_000 };
    this.#polls.add(poll);
    return receive().finally(() => this.#polls.delete(poll));
  }

  async #paused(): Promise<Turn> {
    const { postgres, stop } = this.#options;
    const now = performance.now();
    // While Postgres is away nobody can say what is left to do; and pollers that pause together are one look.
    const isToLook = !postgres.failing && now - this.#lookedAt >= LOOK_AGAIN_MS / 2;
    try {
      if (isToLook) {
        this.#lookedAt = now;
        if (await this.#drainSays((drain) => drain.isOverWhilePaused())) return 'over';
      }
    } catch (error) {
      return this.#failed(error);
    }
    await stop.pause(LOOK_AGAIN_MS);
    return 'paused';
  }

  async #failed(error: unknown): Promise<Turn> {
    const { sqs, stop } = this.#options;
    // The sockets are closed under the polls that outlast the time there is for stopping.
    if (stop.isRequested) return 'over';
    await sqs.failed(error);
    return 'failed';
  }

  async #drainSays(ask: (drain: Drain) => Promise<boolean>): Promise<boolean> {
    const { drain } = this.#options;
    if (drain === undefined) return false;
    try {
      if (await ask(drain)) this.#isDrained = true;
    } catch (error) {
      // Fatal at once, where the back-off waits for several in a row: polls succeed in between, and there never are.
      const { text, fatal } = this.#options.sqs.explain(error);
      throw fatal ? new FatalError(text) : error;
    }
    return this.#isDrained;
  }

  /** Whether Postgres is well and its backlog small enough. */
  async #mayReceive(): Promise<boolean> {
    const { lanes, gate, postgres } = this.#options;
    // The lanes find out when Postgres is well again: to ask for the backlog might succeed where they fail.
    if (lanes.isRetrying) return false;
    try {
      const isOpen = await gate.isOpen();
      if (postgres.failing && !lanes.isRetrying) postgres.succeeded();
      return isOpen;
    } catch (error) {
      await postgres.failed(error);
      return false;
    }
  }

  /** Whether there is room in memory: for two batches, beside what polls under way may bring. */
  #hasRoom(): boolean {
    const { batchRows, batchBytes } = this.#options.settings;
    const batches = this.unstaged;
    const bytes = batches.reduce((sum, batch) => sum + batch.bytes, 0);
    return rowsOf(batches) < LANES * batchRows && bytes < LANES * batchBytes;
  }

  #isOver(): boolean {
    return this.#isDrained || this.#options.stop.isRequested;
  }
}

export function rowsOf(batches: readonly Batch[]): number {
  return batches.reduce((sum, batch) => sum + batch.messages.length, 0);
}
