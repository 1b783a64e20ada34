/** A wait that others can end early: `wake` ends every wait there is. */
export class Wakeup {
  readonly #waiting = new Set<() => void>();

  /**
   * @param ms how long to wait at most
   */
  wait(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const end = (): void => {
        clearTimeout(timer);
        this.#waiting.delete(end);
        resolve();
      };
      const timer = setTimeout(end, ms);
      this.#waiting.add(end);
    });
  }

  wake(): void {
    for (const end of this.#waiting) end();
  }
}
