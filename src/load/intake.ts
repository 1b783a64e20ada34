import { FatalError } from '../errors.ts';
import { RECEIVE_MAX, type ReceivedMessage } from '../queue/receive.ts';
import { Throttle } from '../retry.ts';
import { pause } from '../wait.ts';
import type { Drain } from './drain.ts';
import type { Gate } from './gate.ts';
import type { Health } from './health.ts';
import type { Turn } from './pollers.ts';
import type { Stager } from './stager.ts';
import type { Stop } from './stop.ts';

/** How often to recheck whether receiving is allowed, in milliseconds. */
const RECHECK_MS = 1_000;

export interface IntakeOptions {
  /** One long poll. */
  receive: () => Promise<ReceivedMessage[]>;
  /** How long a poll may take, in seconds. */
  waitTimeSeconds: number;
  onReceived: (messages: ReceivedMessage[]) => void;
  stager: Stager;
  gate: Gate;
  /** Absent if the loader does not end when the queue is empty. */
  drain: Drain | undefined;
  postgres: Health;
  sqs: Health;
  stop: Stop;
}

/** What each poller does in turn: it receives if there is room in memory, Postgres is healthy and the gate is open. */
export class Intake {
  readonly #options: IntakeOptions;
  /** When each poll under way ends at the latest. */
  readonly #polls = new Set<{ endsAt: number }>();
  /** Pollers that are paused at the same time look at the queue's counts once. */
  readonly #looks = new Throttle(RECHECK_MS / 2);
  #isDrained = false;

  constructor(options: IntakeOptions) {
    this.#options = options;
  }

  /** How long the polls under way may still take, in milliseconds; 0 if there are none. */
  get pollsLeftMs(): number {
    const now = performance.now();
    return Math.max(0, ...[...this.#polls].map(({ endsAt }) => endsAt - now));
  }

  /** @throws {FatalError} an error that no retry can fix */
  async turn(): Promise<Turn> {
    const { stager } = this.#options;
    if (this.#isOver()) return 'over';
    if (!stager.hasRoom) {
      await stager.waitForRoom(RECHECK_MS);
      return 'waited';
    }
    if (!(await this.#mayReceive())) return this.#pause();
    return this.#isOver() ? 'over' : this.#poll();
  }

  async #poll(): Promise<Turn> {
    const { onReceived, stager, sqs } = this.#options;
    try {
      const messages = await this.#receive();
      sqs.succeeded();
      stager.add(messages);
      onReceived(messages);
      if (await this.#updateDrained((drain) => drain.isOverAfter(messages.length))) return 'over';
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

  async #pause(): Promise<Turn> {
    const { postgres, stop } = this.#options;
    try {
      // While Postgres fails, an empty queue does not mean that the work is done.
      if (!postgres.failing && this.#looks.pass()) {
        if (await this.#updateDrained((drain) => drain.isOverWhilePaused())) return 'over';
      }
    } catch (error) {
      return this.#failed(error);
    }
    await pause(RECHECK_MS, stop.signal);
    return 'paused';
  }

  async #failed(error: unknown): Promise<Turn> {
    const { sqs, stop } = this.#options;
    // A poll that outlasts the time for stopping fails, because its socket is closed.
    if (stop.isRequested) return 'over';
    await sqs.failed(error);
    return 'failed';
  }

  /** Asks whether the queue is empty, if the loader is to end then. Once it was empty, the answer stays true. */
  async #updateDrained(ask: (drain: Drain) => Promise<boolean>): Promise<boolean> {
    const { drain } = this.#options;
    if (drain === undefined) return false;
    try {
      if (await ask(drain)) this.#isDrained = true;
    } catch (error) {
      // Thrown at once. `sqs.failed` waits for several failures in a row, but the polls in between succeed.
      const { text, fatal } = this.#options.sqs.explain(error);
      throw fatal ? new FatalError(text) : error;
    }
    return this.#isDrained;
  }

  /** Whether Postgres is healthy and its backlog small enough. */
  async #mayReceive(): Promise<boolean> {
    const { stager, gate, postgres } = this.#options;
    // Only staging shows that Postgres is healthy again: reading the backlog may succeed while staging fails.
    if (stager.isRetrying) return false;
    try {
      const isOpen = await gate.isOpen();
      if (postgres.failing && !stager.isRetrying) postgres.succeeded();
      return isOpen;
    } catch (error) {
      await postgres.failed(error);
      return false;
    }
  }

  #isOver(): boolean {
    return this.#isDrained || this.#options.stop.isRequested;
  }
}
