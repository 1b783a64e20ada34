import { expect, test } from 'vitest';
import { createQueueClient } from '../../src/queue/client.ts';
import { queueFault } from '../../src/queue/faults.ts';
import { countWaiting } from '../../src/queue/counts.ts';
import { refusal, startFakeSqs } from './fake-sqs.ts';

const fatalQueueFault = (error: unknown) => {
  const fault = queueFault(error);
  return fault?.fatal ? fault.text : undefined;
};

async function errorFor(type: string, status: number): Promise<unknown> {
  const sqs = await startFakeSqs(() => refusal(type, status));
  const client = createQueueClient(sqs.queue, { maxSockets: 1 });
  try {
    return await countWaiting(client, sqs.queue.url).catch((error: unknown) => error);
  } finally {
    client.destroy();
    await sqs.stop();
  }
}

test.each([
  ['QueueDoesNotExist', 400],
  ['InvalidAddress', 404],
  ['InvalidClientTokenId', 403],
  ['UnrecognizedClientException', 403],
  ['SignatureDoesNotMatch', 403],
  ['AccessDenied', 403],
  ['AccessDeniedException', 400],
  ['ExpiredToken', 403],
  ['InvalidSignatureException', 403],
  ['IncompleteSignatureException', 403],
  ['KmsAccessDenied', 400],
  ['KmsNotFound', 400],
  ['KmsDisabled', 400],
  ['KmsInvalidState', 400],
  ['KmsInvalidKeyUsage', 400],
  ['KmsOptInRequired', 403],
  ['RequestExpired', 400],
])('%s is fatal', async (type, status) => {
  expect(fatalQueueFault(await errorFor(type, status))).toBeTypeOf('string');
});

test.each([
  ['RequestThrottled', 403],
  ['ServiceUnavailable', 503],
  ['InternalFailure', 500],
  ['OverLimit', 403],
  ['KmsThrottled', 400],
])('%s may heal', async (type, status) => {
  expect(fatalQueueFault(await errorFor(type, status))).toBeUndefined();
});

test('a queue nobody listens for may heal', async () => {
  const sqs = await startFakeSqs(() => ({ body: {} }));
  await sqs.stop();
  const client = createQueueClient(sqs.queue, { maxSockets: 1 });
  const error: unknown = await countWaiting(client, sqs.queue.url).catch((thrown: unknown) => thrown);
  client.destroy();
  expect(fatalQueueFault(error)).toBeUndefined();
});

test('missing credentials are fatal', () => {
  expect(fatalQueueFault(Object.assign(new Error('x'), { name: 'CredentialsProviderError' }))).toBeTypeOf(
    'string',
  );
});

test.each([
  'Signature expired: 20260101T000000Z is now earlier',
  'Signature not yet current: 20260101T000000Z',
])('a clock that is wrong is told apart from credentials that are: %s', (message) => {
  const skewed = Object.assign(new Error(message), { name: 'InvalidSignatureException' });
  expect(fatalQueueFault(skewed)).toContain('clock');
  expect(fatalQueueFault(Object.assign(new Error('x'), { name: skewed.name }))).not.toContain('clock');
});

test('what is told holds nothing of the error', () => {
  const error = Object.assign(new Error('the receipt handle AQEB'), { name: 'AccessDenied' });
  expect(fatalQueueFault(error)).not.toContain('AQEB');
});
