import { Wakeup } from './wakeup.ts';

/** The one place that says whether the loader is to stop, and why. Waits on it end when it is. */
export class Stop {
  readonly #wakeup = new Wakeup();
  readonly requested: Promise<void>;
  #request!: () => void;
  #isRequested = false;
  /** What made it stop, where it was not a person or a supervisor. */
  failure: unknown;

  constructor() {
    this.requested = new Promise((resolve) => {
      this.#request = resolve;
    });
  }

  get isRequested(): boolean {
    return this.#isRequested;
  }

  /** @param failure the error that leaves nothing but stopping; the first one counts */
  request(failure?: unknown): void {
    this.failure ??= failure;
    this.#isRequested = true;
    this.#request();
    this.#wakeup.wake();
  }

  /** Waits `ms` milliseconds, or until stopping is requested. */
  async pause(ms: number): Promise<void> {
    if (!this.#isRequested) await this.#wakeup.wait(ms);
  }
}
