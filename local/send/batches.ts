/** The most entries that SQS takes in one batch. */
const BATCH_ENTRIES = 10;

/**
 * The most bytes for one batch. SQS takes 1 MiB since August 2025 and took 256 KiB before, as many queues that are
 * compatible with it still do. A single message that is larger travels alone.
 */
const BATCH_BYTES = 262_144;

/**
 * Gathers bodies into batches that SQS takes, in order.
 *
 * @param most entries a batch, at most ten
 */
export async function* inBatches(
  bodies: Iterable<string> | AsyncIterable<string>,
  most: number = BATCH_ENTRIES,
): AsyncGenerator<string[], void> {
  let batch: string[] = [];
  let bytes = 0;
  for await (const body of bodies) {
    const size = Buffer.byteLength(body);
    if (batch.length > 0 && (batch.length >= Math.min(most, BATCH_ENTRIES) || bytes + size > BATCH_BYTES)) {
      yield batch;
      batch = [];
      bytes = 0;
    }
    batch.push(body);
    bytes += size;
  }
  if (batch.length > 0) yield batch;
}
