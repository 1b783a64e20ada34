import { Grouping } from '../../src/grouping.ts';
import { BATCH_MAX } from '../../src/queue/tens.ts';

/**
 * The most bytes of a batch. SQS accepts 1 MiB since August 2025, and 256 KiB before, like many services that are
 * compatible with it. A single message that is larger is sent alone.
 */
const BATCH_BYTES = 262_144;

/**
 * Gathers bodies into batches that SQS accepts, in order.
 *
 * @param most entries of a batch, at most ten
 */
export async function* inBatches(
  bodies: Iterable<string> | AsyncIterable<string>,
  most: number = BATCH_MAX,
): AsyncGenerator<string[], void> {
  const max = { items: Math.min(most, BATCH_MAX), bytes: BATCH_BYTES };
  const batches = new Grouping<string>(max, (body) => Buffer.byteLength(body));
  for await (const body of bodies) yield* batches.add(body);
  yield* batches.rest();
}
