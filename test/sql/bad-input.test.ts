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

/** Masks a case between two valid messages, and checks what must be true for every case. */
async function check({ body, result }: Case): Promise<void> {
  const mark = `mark-${randomBytes(12).toString('hex')}`;
  const valid = [event({ ip: `mate-${mark}` }), event({ device_id: `mate-${mark}` })];
  const [before, tested, after] = [message(valid[0]), message(body(mark)), message(valid[1])];
  const log = markLog();

  const { batchId, receipts } = await maskAll(db, [before, tested, after]);

  expect(await outcomesOf(db, before.id)).toEqual(['loaded']);
  expect(await outcomesOf(db, after.id)).toEqual(['loaded']);
  expect(receipts).toHaveLength(3);
  const outcomes = await outcomesOf(db, tested.id);
  const isLoaded = result === 'loaded';
  expect(outcomes.map((outcome) => (outcome === 'loaded' ? outcome : 'quarantined'))).toEqual([result]);
  expect(JSON.stringify(outcomes)).not.toContain(mark);
  expect(await ledgerOf(db, batchId)).toMatchObject({
    rows: 3,
    inserted: isLoaded ? 3 : 2,
    duplicates: 0,
    quarantined: isLoaded ? 0 : 1,
  });
  const kept = isLoaded ? undefined : await quarantinedBody(db, tested.id);
  expect(kept).toEqual(isLoaded ? undefined : Buffer.from(tested.body as string));
  expect(holds(log.since(), mark)).toBe(false);
}

describe.each([
  ['a body that is not JSON is quarantined, and the rest of its batch loads', UNREADABLE],
  ['JSON that is not a login event is quarantined, and the rest of its batch loads', NO_EVENT],
  ['an unusual but valid login event is loaded', ODD],
  ['an event with a field of the wrong type is quarantined', WRONG_TYPES],
  ['an event is loaded with a field at its length limit and quarantined with a longer one', LENGTHS],
  ['an optional field may be null, absent or empty', ABSENT],
])('%s', (_, cases) => {
  test.each(cases)('$name', check);
});

test('the reason names the field and says what is wrong with it', async () => {
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

test('a batch without any valid message is quarantined completely', async () => {
  const messages = [...UNREADABLE, ...NO_EVENT].map(({ body }) => message(body('mark')));
  const { batchId, receipts } = await maskAll(db, messages);
  expect(receipts).toHaveLength(messages.length);
  expect(await ledgerOf(db, batchId)).toMatchObject({ inserted: 0, quarantined: messages.length });
});

test('the values of a quarantined message do not enter the vault', async () => {
  const { rows: before } = await db.superuser.query('select count(*) from masking.vault');
  await maskAll(db, [
    message(event({ user_id: null, ip: 'only here', device_id: 'only here' })),
    message(event({ locale: 5, ip: 'only here', device_id: 'only here' })),
  ]);
  const { rows: after } = await db.superuser.query('select count(*) from masking.vault');
  expect(after).toEqual(before);
});
