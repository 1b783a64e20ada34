import { SQSClient } from '@aws-sdk/client-sqs';
import { expect, test } from 'vitest';
import { createQueueClient } from '../../src/queue/client.ts';

const QUEUE = { url: 'http://127.0.0.1:1/0/queue', endpoint: 'http://127.0.0.1:1', region: 'us-east-1' };

test('nothing is prepared for a log that nobody keeps', () => {
  const middleware = createQueueClient(QUEUE, { maxSockets: 1 }).middlewareStack.identify().join('\n');
  const before = new SQSClient({ region: QUEUE.region }).middlewareStack.identify().join('\n');

  // Should the SDK call it something else one day, this says so.
  expect(before).toContain('loggerMiddleware');
  expect(middleware).not.toContain('loggerMiddleware');
});
