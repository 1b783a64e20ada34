import { startFauxqs, type FauxqsServer } from 'fauxqs';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { QueueSettings } from '../../src/config.ts';
import { createQueueClient } from '../../src/queue/client.ts';
import { countMessages, countWaiting } from '../../src/queue/counts.ts';
import { refusal, startFakeSqs } from './fake-sqs.ts';

const REGION = 'eu-west-1';

let server: FauxqsServer;

beforeEach(async () => {
  server = await startFauxqs({ port: 0, logger: false, defaultRegion: REGION });
});
afterEach(() => server.stop());

async function countsOf(url: string) {
  const queue: QueueSettings = {
    url,
    endpoint: `http://127.0.0.1:${server.port}`,
    region: REGION,
    credentials: { accessKeyId: 'test', secretAccessKey: 'test' },
  };
  const client = createQueueClient(queue, { maxSockets: 1 });
  return countMessages(client, url).finally(() => client.destroy());
}

test('visible, delayed and dead-lettered messages are counted', async () => {
  const dead = server.createQueue('dead', { region: REGION });
  const redrive = JSON.stringify({ deadLetterTargetArn: dead.queueArn, maxReceiveCount: 3 });
  const { queueUrl } = server.createQueue('logins', {
    region: REGION,
    attributes: { RedrivePolicy: redrive },
  });
  server.sendMessage('logins', '1', { region: REGION });
  server.sendMessage('logins', '2', { region: REGION, delaySeconds: 60 });
  server.sendMessage('dead', '3', { region: REGION });
  expect(await countsOf(queueUrl)).toEqual({ visible: 1, inFlight: 0, delayed: 1, deadLettered: 1 });
});

test('without a dead-letter queue there is no count of it', async () => {
  const { queueUrl } = server.createQueue('logins', { region: REGION });
  expect(await countsOf(queueUrl)).toEqual({ visible: 0, inFlight: 0, delayed: 0, deadLettered: null });
});

test('a dead-letter queue that may not be read has no count, and the others stay', async () => {
  const sqs = await startFakeSqs(({ action }) =>
    action === 'GetQueueAttributes'
      ? {
          body: {
            Attributes: {
              ApproximateNumberOfMessages: '4',
              RedrivePolicy: '{"deadLetterTargetArn":"arn:aws:sqs:eu-west-1:1:dead"}',
            },
          },
        }
      : refusal('AccessDenied', 403),
  );
  const client = createQueueClient(sqs.queue, { maxSockets: 1 });
  expect(await countMessages(client, sqs.queue.url)).toMatchObject({ visible: 4, deadLettered: null });
  expect(await countWaiting(client, sqs.queue.url)).toEqual({ visible: 4, inFlight: 0, delayed: 0 });
  client.destroy();
  await sqs.stop();
});
