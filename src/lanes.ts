export interface Lanes<T> {
  /** How many items are worked on at the same time. */
  lanes: number;
  items: Iterator<T> | AsyncIterator<T>;
  /** After an abort, no further item is begun. */
  stop?: AbortSignal | undefined;
}

/**
 * Works on items, several at the same time.
 *
 * @throws the first error of `act`; no further item is begun after it
 */
export async function inLanes<T>(
  { lanes, items, stop }: Lanes<T>,
  act: (item: T) => Promise<void>,
): Promise<void> {
  const failed = new AbortController();
  const isOver = (): boolean => failed.signal.aborted || stop?.aborted === true;
  const lane = async (): Promise<void> => {
    while (!isOver()) {
      const next = await items.next();
      if (next.done === true) return;
      await act(next.value).catch((error: unknown) => {
        failed.abort();
        throw error;
      });
    }
  };
  await Promise.all(Array.from({ length: lanes }, lane));
}
