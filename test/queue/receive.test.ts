import { afterEach, expect, test } from 'vitest';
import { FatalError } from '../../src/errors.ts';
import { createQueueClient } from '../../src/queue/client.ts';
import { receive } from '../../src/queue/receive.ts';
import { startFakeSqs, type FakeSqs } from './fake-sqs.ts';

const MESSAGE = {
  MessageId: '5fea7756-0ea4-451a-a703-a558b933e274',
  ReceiptHandle: 'handle',
  MD5OfBody: 'this is no digest',
  Body: 'ü',
  Attributes: { SentTimestamp: '1700000000123', ApproximateReceiveCount: '3' },
};
const POLLING = { waitTimeSeconds: 7, visibilityTimeoutSeconds: 90 };

let sqs: FakeSqs;

async function receiveOf(message: object) {
  sqs = await startFakeSqs(() => ({ body: { Messages: [message] } }));
  const client = createQueueClient(sqs.queue, { maxSockets: 1 });
  return receive(client, sqs.queue.url, POLLING).finally(() => client.destroy());
}

afterEach(() => sqs.stop());

test('a poll asks for ten messages, the two attributes, and the visibility timeout it is told', async () => {
  await receiveOf(MESSAGE);
  expect(sqs.requests[0]).toMatchObject({
    action: 'ReceiveMessage',
    body: {
      MaxNumberOfMessages: 10,
      WaitTimeSeconds: 7,
      VisibilityTimeout: 90,
      MessageSystemAttributeNames: ['SentTimestamp', 'ApproximateReceiveCount'],
    },
  });
});

test('a body is taken as it is: nobody computes its MD5', async () => {
  expect(await receiveOf(MESSAGE)).toEqual([
    {
      messageId: MESSAGE.MessageId,
      receiptHandle: 'handle',
      sentAt: 1_700_000_000_123,
      receiveCount: 3,
      body: 'ü',
      bytes: 2,
    },
  ]);
});

test('a message id that is no UUID becomes one', async () => {
  const [message] = await receiveOf({ ...MESSAGE, MessageId: 'ID:1-2-3' });
  expect(message?.messageId).toMatch(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
});

test('a message without the time it was sent is refused: the key of the table needs it', async () => {
  await expect(receiveOf({ ...MESSAGE, Attributes: {} })).rejects.toThrow(FatalError);
});
