import { ChangeMessageVisibilityBatchCommand, type SQSClient } from '@aws-sdk/client-sqs';
import { entriesOf, inTens } from './tens.ts';

/**
 * Returns messages to the queue at once, so that others can receive them. If SQS refuses, the messages become visible
 * when their visibility timeout ends.
 *
 * @param client a client without long polls, which would hold its sockets
 * @param url the queue's URL
 * @param receiptHandles of the messages; any number
 * @returns how many were returned
 */
export async function releaseMessages(
  client: SQSClient,
  url: string,
  receiptHandles: readonly string[],
): Promise<number> {
  let released = 0;
  await inTens(receiptHandles, async (ten) => {
    const Entries = entriesOf(ten).map((entry) => ({ ...entry, VisibilityTimeout: 0 }));
    const request = new ChangeMessageVisibilityBatchCommand({ QueueUrl: url, Entries });
    const answer = await client.send(request).catch(() => undefined);
    released += answer?.Successful?.length ?? 0;
  });
  return released;
}
