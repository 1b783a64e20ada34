import {
  GetQueueAttributesCommand,
  GetQueueUrlCommand,
  type QueueAttributeName,
  type SQSClient,
} from '@aws-sdk/client-sqs';

/** How many messages are in a queue. SQS's counts are approximate and lag by up to a minute. */
export interface WaitingCounts {
  /** Can be received now. */
  visible: number;
  /** Received and not yet deleted. */
  inFlight: number;
  /** Sent with a delay that has not ended. */
  delayed: number;
}

export interface MessageCounts extends WaitingCounts {
  /** In the dead-letter queue; null if there is none, or it may not be read. */
  deadLettered: number | null;
}

const WAITING: QueueAttributeName[] = [
  'ApproximateNumberOfMessages',
  'ApproximateNumberOfMessagesNotVisible',
  'ApproximateNumberOfMessagesDelayed',
];

/**
 * Counts the messages of the queue itself: one request.
 *
 * @throws any error of the SDK
 */
export async function countWaiting(client: SQSClient, url: string): Promise<WaitingCounts> {
  return waitingOf(await attributesOf(client, url, WAITING));
}

/**
 * Counts the messages of the queue and of its dead-letter queue: up to three requests.
 *
 * @throws any error of the SDK about the queue itself
 */
export async function countMessages(client: SQSClient, url: string): Promise<MessageCounts> {
  const attributes = await attributesOf(client, url, [...WAITING, 'RedrivePolicy']);
  return { ...waitingOf(attributes), deadLettered: await deadLetteredOf(client, attributes.RedrivePolicy) };
}

type Attributes = Partial<Record<QueueAttributeName, string>>;

async function attributesOf(
  client: SQSClient,
  url: string,
  names: QueueAttributeName[],
): Promise<Attributes> {
  const answer = await client.send(new GetQueueAttributesCommand({ QueueUrl: url, AttributeNames: names }));
  return answer.Attributes ?? {};
}

function waitingOf(attributes: Attributes): WaitingCounts {
  return {
    visible: Number(attributes.ApproximateNumberOfMessages ?? 0),
    inFlight: Number(attributes.ApproximateNumberOfMessagesNotVisible ?? 0),
    delayed: Number(attributes.ApproximateNumberOfMessagesDelayed ?? 0),
  };
}

async function deadLetteredOf(client: SQSClient, redrivePolicy: string | undefined): Promise<number | null> {
  if (redrivePolicy === undefined) return null;
  try {
    const { deadLetterTargetArn } = JSON.parse(redrivePolicy) as { deadLetterTargetArn: string };
    // arn:aws:sqs:REGION:ACCOUNT:NAME
    const [account, name] = deadLetterTargetArn.split(':').slice(4);
    const { QueueUrl } = await client.send(
      new GetQueueUrlCommand({ QueueName: name, QueueOwnerAWSAccountId: account }),
    );
    const attributes = await attributesOf(client, QueueUrl ?? '', ['ApproximateNumberOfMessages']);
    return Number(attributes.ApproximateNumberOfMessages);
  } catch {
    // Permissions for a queue do not include its dead-letter queue.
    return null;
  }
}
