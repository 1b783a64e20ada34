import { type Message, ReceiveMessageCommand, type SQSClient } from '@aws-sdk/client-sqs';
import { FatalError } from '../errors.ts';
import { toUuid } from './message-id.ts';

/** The most that SQS gives out at once. */
export const RECEIVE_MAX = 10;

/** A message as it was received; `body` is whatever was sent and nothing here looks into it. */
export interface ReceivedMessage {
  /** A UUID; see `toUuid`. */
  messageId: string;
  receiptHandle: string;
  /** When it was sent, in milliseconds since 1970. SQS keeps it when it delivers the message again. */
  sentAt: number;
  /** How often it has been received, this time included. */
  receiveCount: number;
  body: string;
  /** Length of the body in UTF-8. */
  bytes: number;
}

/**
 * One long poll. It is never aborted: SQS would still hand messages to the dead request, and they would be out of
 * sight until their visibility timeout ends.
 *
 * @param client a client with a socket to spare for each poll under way
 * @param url the queue's URL
 * @param options how long SQS waits for a first message, and how long what it gives out stays hidden; in seconds
 * @throws {FatalError} where the endpoint leaves out what AWS always sends; else whatever the SDK throws
 */
export async function receive(
  client: SQSClient,
  url: string,
  options: { waitTimeSeconds: number; visibilityTimeoutSeconds: number },
): Promise<ReceivedMessage[]> {
  const answer = await client.send(
    new ReceiveMessageCommand({
      QueueUrl: url,
      MaxNumberOfMessages: RECEIVE_MAX,
      WaitTimeSeconds: options.waitTimeSeconds,
      VisibilityTimeout: options.visibilityTimeoutSeconds,
      MessageSystemAttributeNames: ['SentTimestamp', 'ApproximateReceiveCount'],
    }),
  );
  return (answer.Messages ?? []).map(received);
}

function received({ MessageId, ReceiptHandle, Attributes, Body = '' }: Message): ReceivedMessage {
  const sentAt = Number(Attributes?.SentTimestamp ?? Number.NaN);
  // The table's key is made of these. To invent one would be to load the message again each time it comes.
  if (MessageId === undefined || ReceiptHandle === undefined || !Number.isSafeInteger(sentAt)) {
    throw new FatalError(
      'the SQS endpoint sends messages without MessageId, ReceiptHandle or SentTimestamp: it cannot be used',
    );
  }
  return {
    messageId: toUuid(MessageId),
    receiptHandle: ReceiptHandle,
    sentAt,
    receiveCount: Math.max(1, Math.trunc(Number(Attributes?.ApproximateReceiveCount)) || 1),
    body: Body,
    bytes: Buffer.byteLength(Body),
  };
}
