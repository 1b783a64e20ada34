import { inLanes } from '../lanes.ts';

/** The most entries that SQS accepts in one batch request. */
export const BATCH_MAX = 10;

/**
 * Requests under way at the same time. SQS answers in some ten milliseconds, so 8 requests handle thousands of
 * messages a second.
 */
export const CONCURRENCY = 8;

/**
 * Calls `act` with ten items at a time, several calls at the same time.
 *
 * @throws the first error of `act`
 */
export function inTens<T>(items: readonly T[], act: (ten: T[]) => Promise<void>): Promise<void> {
  return inLanes({ lanes: CONCURRENCY, items: tensOf(items) }, act);
}

function* tensOf<T>(items: readonly T[]): Generator<T[], void> {
  for (let from = 0; from < items.length; from += BATCH_MAX) yield items.slice(from, from + BATCH_MAX);
}

/** The entries of a batch request. Ids are positions: a message may occur twice in a request, and ids must differ. */
export function entriesOf(receiptHandles: readonly string[]): { Id: string; ReceiptHandle: string }[] {
  return receiptHandles.map((ReceiptHandle, index) => ({ Id: String(index), ReceiptHandle }));
}
