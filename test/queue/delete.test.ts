import { afterEach, expect, test } from 'vitest';
import { createQueueClient } from '../../src/queue/client.ts';
import { deleteMessages } from '../../src/queue/delete.ts';
import { refusal, type FakeSqs, type SqsAnswer, type SqsRequest, startFakeSqs } from './fake-sqs.ts';

let sqs: FakeSqs;
const waits: number[] = [];
const wait = async (ms: number) => void waits.push(ms);

afterEach(async () => {
  waits.length = 0;
  await sqs.stop();
});

async function deleteWith(handles: string[], answer: (request: SqsRequest, number: number) => SqsAnswer) {
  sqs = await startFakeSqs(answer);
  const client = createQueueClient(sqs.queue, { maxSockets: 8 });
  return deleteMessages(client, sqs.queue.url, handles, { wait }).finally(() => client.destroy());
}

/** Fails the entries that `code` gives a code for. */
function failing(
  request: SqsRequest,
  code: (handle: string) => string | undefined,
  senderFault = true,
): SqsAnswer {
  const entries = request.body.Entries.map(({ Id, ReceiptHandle }) => ({ Id, Code: code(ReceiptHandle) }));
  return {
    body: {
      Successful: entries.filter(({ Code }) => Code === undefined).map(({ Id }) => ({ Id })),
      Failed: entries
        .filter(({ Code }) => Code !== undefined)
        .map((entry) => ({ ...entry, SenderFault: senderFault })),
    },
  };
}

const handlesOf = (request: SqsRequest | undefined) =>
  request?.body.Entries.map((entry) => entry.ReceiptHandle);

test('messages are deleted ten a request', async () => {
  const handles = Array.from({ length: 25 }, (_, n) => `h${n}`);
  const answer = await deleteWith(handles, (request) => failing(request, () => undefined));
  expect(answer).toEqual({ deleted: 25, refused: 0, failed: 0 });
  expect(sqs.requests.map((request) => request.body.Entries.length).sort()).toEqual([10, 10, 5]);
  expect(sqs.requests.flatMap(handlesOf).sort()).toEqual(handles.sort());
});

test('entries have ids by position, so that one message may be in a request twice', async () => {
  await deleteWith(['same', 'same'], (request) => failing(request, () => undefined));
  expect(sqs.requests[0]?.body.Entries.map(({ Id }) => Id)).toEqual(['0', '1']);
});

test('entries that fail are sent again, and only those', async () => {
  const answer = await deleteWith(['a', 'b', 'c'], (request, number) =>
    failing(request, (handle) => (number === 1 && handle !== 'b' ? 'InternalError' : undefined), false),
  );
  expect(answer).toEqual({ deleted: 3, refused: 0, failed: 0 });
  expect(sqs.requests.map(handlesOf)).toEqual([
    ['a', 'b', 'c'],
    ['a', 'c'],
  ]);
});

test('an entry that SQS says nothing about is sent again', async () => {
  const answer = await deleteWith(['a', 'b'], (_, number) => ({
    body: { Successful: number === 1 ? [{ Id: '1' }] : [{ Id: '0' }] },
  }));
  expect(answer).toEqual({ deleted: 2, refused: 0, failed: 0 });
  expect(sqs.requests.map(handlesOf)).toEqual([['a', 'b'], ['a']]);
});

test('an entry that goes on failing is given up after a few attempts, further and further apart', async () => {
  const answer = await deleteWith(['a'], (request) => failing(request, () => 'InternalError', false));
  expect(answer).toEqual({ deleted: 0, refused: 0, failed: 1 });
  expect(sqs.requests).toHaveLength(4);
  expect(waits).toHaveLength(3);
  expect(waits.every((ms, n) => ms >= 100 * 2 ** n && ms <= 200 * 2 ** n)).toBe(true);
});

test.each(['ReceiptHandleIsInvalid', 'InvalidParameterValue'])(
  'an entry refused with %s is not sent again: the message comes back by itself',
  async (code) => {
    const answer = await deleteWith(['a', 'b'], (request) =>
      failing(request, (handle) => (handle === 'a' ? code : undefined)),
    );
    expect(answer).toEqual({ deleted: 1, refused: 1, failed: 0 });
    expect(sqs.requests).toHaveLength(1);
  },
);

test('a request that fails as a whole is made again', async () => {
  const answer = await deleteWith(['a'], (request, number) =>
    number <= 4 ? refusal('ServiceUnavailable', 503) : failing(request, () => undefined),
  );
  expect(answer).toEqual({ deleted: 1, refused: 0, failed: 0 });
});

test('what no further attempt heals is thrown', async () => {
  await expect(deleteWith(['a'], () => refusal('QueueDoesNotExist'))).rejects.toMatchObject({
    name: 'QueueDoesNotExist',
  });
  expect(sqs.requests).toHaveLength(1);
});
