/** The most entries that SQS takes in one batch request. */
const BATCH_MAX = 10;

/** Requests under way at once. SQS answers one in some ten milliseconds; eight of them make thousands of messages a second. */
const CONCURRENCY = 8;

/**
 * Calls `act` with ten items at a time, several calls under way at once.
 *
 * @throws what `act` throws, as soon as one call fails
 */
export async function inTens<T>(items: readonly T[], act: (ten: T[]) => Promise<void>): Promise<void> {
  let next = 0;
  const lane = async (): Promise<void> => {
    while (next < items.length) {
      const ten = items.slice(next, next + BATCH_MAX);
      next += BATCH_MAX;
      await act(ten);
    }
  };
  await Promise.all(Array.from({ length: CONCURRENCY }, lane));
}
