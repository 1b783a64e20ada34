/** Whether the loader is to stop, and why. Waits of the loader end when it is. */
export class Stop {
  readonly #controller = new AbortController();
  /** The error that made the loader stop; undefined if a person or a supervisor did. */
  failure: unknown;

  /** Aborted when stopping is requested. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  get isRequested(): boolean {
    return this.signal.aborted;
  }

  /** @param failure the error that leaves nothing but stopping; the first one counts */
  request(failure?: unknown): void {
    this.failure ??= failure;
    this.#controller.abort();
  }
}
