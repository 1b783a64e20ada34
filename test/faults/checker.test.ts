import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import type { LoginEvent } from '../../local/send/events.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { check, problemsIn, type Remains } from '../support/faults/check.ts';
import { ALL_STEPS, scheduleOf } from '../support/faults/schedule.ts';
import type { Sent } from '../support/faults/traffic.ts';
import { close, maskAll } from '../support/staging.ts';

const NOWHERE: Remains = { queue: new Set(), deadLetterQueue: new Set() };

function loginEvent(n: number): LoginEvent {
  return {
    user_id: `user-${n}`,
    app_version: '1.0',
    device_type: 'ios',
    ip: `203.0.113.${n}`,
    locale: null,
    device_id: `device-${n}`,
  };
}

let db: TestDatabase;
/** Five well-formed events, the last with the values of the first, and a malformed one. */
let sent: Sent[];

beforeAll(async () => {
  db = await createTestDatabase();
});
beforeEach(async () => {
  const events = [1, 2, 3, 4, 1].map(loginEvent);
  sent = [...events.map((event) => ({ id: randomUUID(), event })), { id: randomUUID() }];
  const { batchId } = await maskAll(
    db,
    sent.map(({ id, event }) => ({ id, body: event === undefined ? 'x' : JSON.stringify(event) })),
  );
  await close(db, batchId);
});
afterEach(() =>
  db.superuser.query(
    `truncate public.user_logins, staging.quarantine, masking.vault, staging.batches, staging.raw_messages`,
  ),
);
afterAll(() => db.drop());

const names = (seed: number): string[] => scheduleOf(seed).steps.map(({ name }) => name);
const id = (index: number): string => sent[index]!.id;
const problemsNow = async (remains = NOWHERE): Promise<string[]> =>
  problemsIn((await check(db.superuser, sent, remains)).findings);

test('a correct run has no findings', async () => {
  expect(await problemsNow()).toEqual([]);
});

test('a message in no table is lost unless the queue or the dead-letter queue has it, and each case is reported', async () => {
  await db.superuser.query('delete from public.user_logins where message_id = $1', [id(0)]);
  expect(await problemsNow()).toEqual(['lost 1', 'inNeither 1', 'ledgerOff 1']);
  const remains = { ...NOWHERE, queue: new Set([id(0)]) };
  expect(await problemsNow(remains)).toEqual(['inNeither 1', 'leftInQueue 1', 'ledgerOff 1']);
  const buried = { ...NOWHERE, deadLetterQueue: new Set([id(0)]) };
  expect(await problemsNow(buried)).toEqual(['inNeither 1', 'deadLettered 1', 'ledgerOff 1']);
});

test('a row whose message was never sent is unexpected', async () => {
  await db.superuser.query(
    `insert into public.user_logins (user_id, create_date, message_id) values ('stranger', now(), $1)`,
    [randomUUID()],
  );
  expect(await problemsNow()).toContain('unexpected 1');
});

test('a message with two rows is duplicated', async () => {
  await db.superuser.query(
    `insert into public.user_logins (user_id, create_date, message_id, device_type, masked_ip, masked_device_id, locale, app_version)
     select user_id, create_date + interval '1 second', message_id, device_type, masked_ip, masked_device_id, locale, app_version
       from public.user_logins where message_id = $1`,
    [id(1)],
  );
  expect(await problemsNow()).toEqual(['duplicated 1', 'ledgerOff 1']);
});

test('a message that is both loaded and quarantined is in both places', async () => {
  await db.superuser.query(
    `insert into staging.quarantine (message_id, sent_at, reason, key_version, body)
     select $1, sent_at, reason, key_version, body from staging.quarantine limit 1`,
    [id(1)],
  );
  expect(await problemsNow()).toEqual(['inBothPlaces 1', 'misplaced 1', 'ledgerOff 1']);
});

test('a field that differs from what was sent is altered', async () => {
  await db.superuser.query(`update public.user_logins set locale = 'RU' where message_id = $1`, [id(2)]);
  expect(await problemsNow()).toEqual(['altered 1']);
});

test('equal values with different tokens, and different values with the same token, are reported', async () => {
  await db.superuser.query(
    `update public.user_logins set masked_ip = gen_random_uuid() where message_id = $1`,
    [id(4)],
  );
  expect(await problemsNow()).toContain('splitTokens 1');
  await db.superuser.query(
    `update public.user_logins set masked_device_id =
       (select masked_device_id from public.user_logins where message_id = $1) where message_id = $2`,
    [id(1), id(2)],
  );
  expect(await problemsNow()).toContain('sharedTokens 1');
});

test('a value that is missing from the vault is reported', async () => {
  await db.superuser.query(
    `delete from masking.vault where token =
       (select masked_ip from public.user_logins where message_id = $1)`,
    [id(3)],
  );
  expect(await problemsNow()).toEqual(['wrongInVault 1']);
});

test('the same seed gives the same schedule, and forty seeds contain every fault at least ten times', () => {
  expect(names(7)).toEqual(names(7));
  expect(scheduleOf(7).queueFaults).toEqual(scheduleOf(7).queueFaults);
  const all = Array.from({ length: 40 }, (_, seed) => names(seed + 1)).flat();
  const rare = ALL_STEPS.filter(({ name }) => all.filter((each) => each === name).length < 10);
  expect(rare).toEqual([]);
});
