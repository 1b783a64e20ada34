import { type Message, ReceiveMessageCommand, type SQSClient } from '@aws-sdk/client-sqs';
import { FatalError } from '../errors.ts';
import { toUuid } from './message-id.ts';

/** The most messages of one request to SQS. */
export const RECEIVE_MAX = 10;

/** A message as it was received. Nothing here reads `body`. */
export interface ReceivedMessage {
  /** A UUID; see `toUuid`. */
  messageId: string;
  receiptHandle: string;
  /** When it was sent, in milliseconds since 1970. A redelivery has the same time. */
  sentAt: number;
  /** How often it has been received, including this time. */
  receiveCount: number;
  body: string;
  /** Length of the body in UTF-8. */
  bytes: number;
}

/**
 * One long poll. It is never aborted: SQS may deliver messages to an aborted request, and they stay hidden until their
 * visibility timeout ends.
 *
 * @param client a client with a free socket for each poll under way
 * @param url the queue's URL
 * @param options how long SQS waits for a first message, and how long it hides received messages, in seconds
 * @throws {FatalError} if the endpoint omits attributes that AWS always sends
 * @throws any error of the SDK
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
  // The table's key consists of these. With invented values, each redelivery would be loaded again.
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
