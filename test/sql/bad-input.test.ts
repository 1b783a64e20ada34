import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { holds } from '../support/forms.ts';
import { markLog } from '../support/server-log.ts';
import { event, ledgerOf, maskAll, message, outcomesOf, quarantinedBody } from '../support/staging.ts';
import { ABSENT, LENGTHS, NO_EVENT, ODD, UNREADABLE, WRONG_TYPES, type Case } from './bodies.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

/** What every case must hold to, in a batch between two good messages. */
async function check({ body, ends }: Case): Promise<void> {
  const mark = `mark-${randomBytes(12).toString('hex')}`;
  const batchmates = [event({ ip: `mate-${mark}` }), event({ device_id: `mate-${mark}` })];
  const [before, odd, after] = [message(batchmates[0]), message(body(mark)), message(batchmates[1])];
  const log = markLog();

  const { batchId, receipts } = await maskAll(db, [before, odd, after]);

  expect(await outcomesOf(db, before.id)).toEqual(['loaded']);
  expect(await outcomesOf(db, after.id)).toEqual(['loaded']);
  expect(receipts).toHaveLength(3);
  const outcomes = await outcomesOf(db, odd.id);
  const isLoaded = ends === 'loaded';
  expect(outcomes.map((outcome) => (outcome === 'loaded' ? outcome : 'quarantined'))).toEqual([ends]);
  expect(JSON.stringify(outcomes)).not.toContain(mark);
  expect(await ledgerOf(db, batchId)).toMatchObject({
    rows: 3,
    inserted: isLoaded ? 3 : 2,
    duplicates: 0,
    quarantined: isLoaded ? 0 : 1,
  });
  const kept = isLoaded ? undefined : await quarantinedBody(db, odd.id);
  expect(kept).toEqual(isLoaded ? undefined : Buffer.from(odd.body as string));
  expect(holds(log.since(), mark)).toBe(false);
}

describe.each([
  ['what cannot be read is quarantined, and its batchmates load', UNREADABLE],
  ['what is no login event is quarantined, and its batchmates load', NO_EVENT],
  ['what is odd and a login event is loaded', ODD],
  ['a field of a wrong type is quarantined', WRONG_TYPES],
  ['a field is loaded at its limit and quarantined beyond', LENGTHS],
  ['a field that may be absent may be null and empty, too', ABSENT],
])('%s', (_, cases) => {
  test.each(cases)('$name', check);
});

test('a reason names the field and its fault', async () => {
  const faults = [
    ['user_id', event({ user_id: 7 })],
    ['ip', event({ ip: 7 })],
    ['device_id', event({ device_id: 'x'.repeat(257) })],
    ['device_type', event({ device_type: 'x'.repeat(33) })],
    ['locale', event({ locale: [] })],
    ['app_version', event({ app_version: 7 })],
    ['body', 'no JSON'],
  ] as const;
  const messages = faults.map(([, body]) => message(body));
  await maskAll(db, messages);
  for (const [index, [field]] of faults.entries()) {
    const [outcome] = await outcomesOf(db, messages[index]!.id);
    expect(outcome).toEqual({ quarantined: expect.stringMatching(new RegExp(`^${field}: .`)) });
  }
});

test('a batch in which nothing is sound ends as quarantined as it should', async () => {
  const messages = [...UNREADABLE, ...NO_EVENT].map(({ body }) => message(body('mark')));
  const { batchId, receipts } = await maskAll(db, messages);
  expect(receipts).toHaveLength(messages.length);
  expect(await ledgerOf(db, batchId)).toMatchObject({ inserted: 0, quarantined: messages.length });
});

test('no address of what is quarantined gets into the vault', async () => {
  const { rows: before } = await db.superuser.query('select count(*) from masking.vault');
  await maskAll(db, [
    message(event({ user_id: null, ip: 'only here', device_id: 'only here' })),
    message(event({ locale: 5, ip: 'only here', device_id: 'only here' })),
  ]);
  const { rows: after } = await db.superuser.query('select count(*) from masking.vault');
  expect(after).toEqual(before);
});
