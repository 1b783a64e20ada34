import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { event, ledgerOf, loginOf, mask, maskAll, message, outcomesOf, stage } from '../support/staging.ts';

/** Envelopes in AWS's formats. */
const TOPIC = { MessageId: '22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324', TopicArn: 'arn:aws:sns:eu-west-1:1:t' };
const SIGNED = {
  Timestamp: '2026-01-15T12:00:00.000Z',
  SignatureVersion: '1',
  Signature: 'EXAMPLE',
  SigningCertURL: 'https://sns.eu-west-1.amazonaws.com/SimpleNotificationService.pem',
};
const sns = (text: unknown, extra: Record<string, unknown> = {}) =>
  JSON.stringify({
    Type: 'Notification',
    ...TOPIC,
    Message: text,
    ...SIGNED,
    UnsubscribeURL: 'https://x',
    ...extra,
  });
const eventBridge = (detail: unknown, extra: Record<string, unknown> = {}) =>
  JSON.stringify({
    version: '0',
    id: '6a7e8feb-b491-4cf7-a9f1-bf3703467718',
    'detail-type': 'login',
    source: 'app.logins',
    account: '111122223333',
    time: '2026-01-15T12:00:00Z',
    region: 'eu-west-1',
    resources: [],
    detail,
    ...extra,
  });
const parsed = (body: string) => JSON.parse(body) as unknown;
const base64 = (body: string | Uint8Array) => Buffer.from(body).toString('base64');

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

describe.each([
  ['SNS', (body: string) => sns(body)],
  [
    'SNS, with a subject and attributes',
    (body: string) =>
      sns(body, { Subject: 'login', MessageAttributes: { a: { Type: 'String', Value: 'b' } } }),
  ],
  ['EventBridge', (body: string) => eventBridge(parsed(body))],
])('an envelope of %s', (_, wrap) => {
  test('is unwrapped, and its event loads like a plain one, under the SQS message id', async () => {
    const user = crypto.randomUUID();
    const body = event({ user_id: user, ip: '2001:DB8::7', locale: 'en', app_version: '3.1' });
    const [plain, wrapped] = [message(body), message(wrap(body))];
    const { batchId, receipts } = await maskAll(db, [plain, wrapped]);
    expect(receipts).toHaveLength(2);
    expect(await ledgerOf(db, batchId)).toMatchObject({ inserted: 2, quarantined: 0 });
    const { loaded_at: _at, ...login } = await loginOf(db, plain.id);
    expect(await loginOf(db, wrapped.id)).toEqual({
      ...login,
      message_id: wrapped.id,
      loaded_at: expect.any(Date),
    });
  });

  test('is unwrapped in a batch with a malformed message, and is a duplicate when redelivered', async () => {
    const wrapped = message(wrap(event()));
    const { batchId } = await maskAll(db, [wrapped, message('no JSON')]);
    expect(await ledgerOf(db, batchId)).toMatchObject({ inserted: 1, quarantined: 1 });
    const again = await stage(db, [{ ...wrapped, receiveCount: 2 }]);
    await mask(db, again);
    expect(await ledgerOf(db, again)).toMatchObject({ inserted: 0, duplicates: 1 });
  });

  test('is unwrapped only once', async () => {
    const twice = message(wrap(wrap(event())));
    await maskAll(db, [twice]);
    expect(await outcomesOf(db, twice.id)).toEqual([{ quarantined: expect.stringContaining('envelope') }]);
  });

  test('is quarantined for the reason of the event in it', async () => {
    const faulty = [event({ user_id: 7 }), event({ user_id: undefined }), event({ ip: 7 })].map((body) =>
      message(wrap(body)),
    );
    await maskAll(db, faulty);
    const outcomes = await Promise.all(faulty.map(({ id }) => outcomesOf(db, id)));
    expect(outcomes.flat()).toEqual([
      { quarantined: 'user_id: not a string' },
      { quarantined: 'user_id: missing' },
      { quarantined: 'ip: not a string' },
    ]);
  });
});

test('an event with a user_id is not an envelope, whatever else it contains', async () => {
  const plain = message(
    event({ Type: 'Notification', Message: event(), 'detail-type': 'x', source: 'y', detail: {} }),
  );
  await maskAll(db, [plain]);
  expect((await loginOf(db, plain.id))['user_id']).toBe(
    (parsed(plain.body as string) as { user_id: string }).user_id,
  );
});

describe('a message without a login event has a specific reason, and the rest of its batch loads', () => {
  test.each<[string, string | Uint8Array, string]>([
    ['SNS with plain text', sns('Hello world!'), 'body: SNS envelope without a login event'],
    ['SNS with an array', sns('[1]'), 'body: SNS envelope without a login event'],
    ['SNS with an escaped NUL', sns('{"user_id":"\\u0000"}'), 'body: SNS envelope without a login event'],
    ['SNS with deep nesting', sns(`{"x":${'['.repeat(100_000)}`), 'body: SNS envelope without a login event'],
    ['SNS with an object instead of text', sns({ user_id: 'u' }), 'body: SNS envelope without a login event'],
    ['EventBridge with text', eventBridge('text'), 'body: EventBridge envelope without a login event'],
    ['EventBridge with null', eventBridge(undefined, { detail: null }), 'body: EventBridge envelope without a login event'],
    ['a subscription confirmation', JSON.stringify({ Type: 'SubscriptionConfirmation', ...TOPIC, Token: '2336412f37', Message: 'You have chosen to subscribe', SubscribeURL: 'https://x', ...SIGNED }), 'body: SNS subscription confirmation'],
    ['an S3 test event', JSON.stringify({ Service: 'Amazon S3', Event: 's3:TestEvent', Time: '2026-01-15T12:00:00.000Z', Bucket: 'b', RequestId: 'r', HostId: 'h' }), 'body: S3 test event'],
    ['an S3 notification', JSON.stringify({ Records: [{ eventVersion: '2.1', eventSource: 'aws:s3', eventName: 'ObjectCreated:Put', s3: { bucket: { name: 'b' }, object: { key: 'k' } } }] }), 'body: S3 event notification'],
    ['an S3 notification in SNS', sns(JSON.stringify({ Records: [{ s3: {} }] })), 'body: S3 event notification'],
    ['a pointer of the extended client', JSON.stringify(['software.amazon.payloadoffloading.PayloadS3Pointer', { s3BucketName: 'b', s3Key: 'k' }]), 'body: pointer of the SQS extended client'],
    ['a pointer of the older extended client', JSON.stringify(['com.amazon.sqs.javamessaging.MessageS3Pointer', { s3BucketName: 'b', s3Key: 'k' }]), 'body: pointer of the SQS extended client'],
    ['gzip', gzipSync(event()), 'body: gzip, or base64 of gzip'],
    ['base64 of gzip', base64(gzipSync(event())), 'body: gzip, or base64 of gzip'],
    ['base64', base64(event()), 'body: base64'],
    ['base64 without padding', base64(event({ user_id: 'u' })).replace(/=+$/, ''), 'body: base64'],
    ['base64 with line breaks', base64(event()).replaceAll(/.{40}/g, '$&\r\n'), 'body: base64'],
    ['base64url', Buffer.from(event({ x: '??>>~~' })).toString('base64url'), 'body: base64'],
    ['base64 of text that is not JSON', `e${base64('no JSON at all')}`, 'body: not JSON'],
    ['a word that begins like base64', 'eyeglasses', 'body: not JSON'],
    ['text in another script that begins like base64', 'eé\u0301', 'body: not JSON'],
    ['an array', '["user_id"]', 'body: not a JSON object'],
    ['an empty array', '[]', 'body: not a JSON object'],
    ['a string', '"user_id"', 'body: not a JSON object'],
    ['another object', '{"foo":1}', 'user_id: missing'],
    ['an object with the records of another service', '{"Records":[{"dynamodb":{}}]}', 'user_id: missing'],
    ['an object whose Records is a number', '{"Records":7}', 'user_id: missing'],
  ])('%s', async (_, body, reason) => {
    const [tested, valid] = [message(body), message()];
    await maskAll(db, [tested, valid]);
    expect(await outcomesOf(db, tested.id)).toEqual([{ quarantined: reason }]);
    expect(await outcomesOf(db, valid.id)).toEqual(['loaded']);
  }); // prettier-ignore
});

test('an erasure finds the owner of a quarantined envelope, even if it is nested or base64', async () => {
  const user = crypto.randomUUID();
  const faulty = event({ user_id: user, locale: 7 });
  const theirs = [
    sns(faulty),
    eventBridge(parsed(faulty)),
    sns(eventBridge(parsed(faulty))),
    sns(sns(sns(faulty))),
    base64(faulty),
    base64(sns(faulty)),
    faulty,
  ].map((body) => message(body));
  const others = [sns(event({ locale: 7 })), base64(event()), 'no JSON', Buffer.from([0x65, 0xff])].map(
    (body) => message(body),
  );
  await maskAll(db, [...theirs, ...others]);
  await db.pool('custodian').query(`select masking.erase_user($1, reason => 'a test')`, [user]);
  const step = 'select more from masking.erase_step()';
  while ((await db.pool('worker').query<{ more: boolean }>(step)).rows[0]!.more);
  for (const { id } of theirs) expect(await outcomesOf(db, id)).toEqual([]);
  for (const { id } of others) expect(await outcomesOf(db, id)).toHaveLength(1);
});

test('an ip that is not an address is masked unchanged and counted in the status', async () => {
  const notAddresses = [
    '203.0.113.9:443',
    '[2001:db8::1]:443',
    '203.0.113.9, 198.51.100.1',
    'unknown',
    '10.0.0.0/8',
  ];
  const addresses = ['203.0.113.9', '2001:db8::1', '::ffff:203.0.113.9', '', null, undefined];
  const messages = [...notAddresses, ...addresses].map((ip) => message(event({ ip })));
  const bad = message(event({ ip: 'unknown', locale: 7 }));
  const statusOf = async () =>
    Number(
      (await db.pool('auditor').query('select no_addresses from staging.status()')).rows[0].no_addresses,
    );
  const before = await statusOf();
  const { batchId } = await maskAll(db, [...messages, bad]);
  expect(await ledgerOf(db, batchId)).toMatchObject({ inserted: messages.length, quarantined: 1 });
  expect(await statusOf()).toBe(before + notAddresses.length);
  await db.pool('worker').query('select staging.close_batch($1)', [batchId]);
  await db.superuser.query(`update staging.batches set acked_at = acked_at - interval '40 days'`);
  await db.pool('worker').query('select staging.clean_ledger()');
  expect(await statusOf()).toBe(before + notAddresses.length);
});
