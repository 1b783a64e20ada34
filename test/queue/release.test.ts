import { afterEach, expect, test } from 'vitest';
import { createQueueClient } from '../../src/queue/client.ts';
import { releaseMessages } from '../../src/queue/release.ts';
import { refusal, type FakeSqs, type SqsAnswer, type SqsRequest, startFakeSqs } from './fake-sqs.ts';

let sqs: FakeSqs;

afterEach(() => sqs.stop());

async function releaseWith(count: number, answer: (request: SqsRequest) => SqsAnswer) {
  sqs = await startFakeSqs(answer);
  const client = createQueueClient(sqs.queue, { maxSockets: 8 });
  const handles = Array.from({ length: count }, (_, n) => `h${n}`);
  return releaseMessages(client, sqs.queue.url, handles).finally(() => client.destroy());
}

test('messages become visible at once, ten a request', async () => {
  const released = await releaseWith(12, ({ body }) => ({
    body: { Successful: body.Entries.map(({ Id }) => ({ Id })), Failed: [] },
  }));
  expect(released).toBe(12);
  const entries = sqs.requests.flatMap(({ body }) => body.Entries);
  expect(entries.map(({ VisibilityTimeout }) => VisibilityTimeout)).toEqual(
    Array.from({ length: 12 }, () => 0),
  );
});

test('what cannot be given back is left to the visibility timeout', async () => {
  expect(await releaseWith(3, () => refusal('AccessDenied', 403))).toBe(0);
});
