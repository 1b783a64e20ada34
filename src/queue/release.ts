import { ChangeMessageVisibilityBatchCommand, type SQSClient } from '@aws-sdk/client-sqs';
import { inTens } from './tens.ts';

/**
 * Gives messages back to the queue at once, for others to receive. A best effort: what cannot be given back comes
 * back by itself when its visibility timeout ends.
 *
 * @param client a client that no long poll holds the sockets of
 * @param url the queue's URL
 * @param receiptHandles of the messages; any number
 * @returns how many were given back
 */
export async function releaseMessages(
  client: SQSClient,
  url: string,
  receiptHandles: readonly string[],
): Promise<number> {
  let released = 0;
  await inTens(receiptHandles, async (ten) => {
    const Entries = ten.map((ReceiptHandle, index) => ({
      Id: String(index),
      ReceiptHandle,
      VisibilityTimeout: 0,
    }));
    try {
      const answer = await client.send(new ChangeMessageVisibilityBatchCommand({ QueueUrl: url, Entries }));
      released += answer.Successful?.length ?? 0;
    } catch {
      // The visibility timeout does it, later.
    }
  });
  return released;
}
