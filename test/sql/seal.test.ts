import { randomBytes } from 'node:crypto';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { isSealed, unseal } from '../../src/database/kek.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { holds } from '../support/forms.ts';
import { markLog } from '../support/server-log.ts';
import { everythingIn, failure, sqlstate } from '../support/sqlstate.ts';
import { ledgerOf, mask, maskAll, message, outcomesOf, stage } from '../support/staging.ts';

let db: TestDatabase;
beforeEach(async () => {
  db = await createTestDatabase({ sealed: true });
});
afterEach(() => db.drop());

const unsealWith = (
  kek: Buffer,
  login: 'worker' | 'custodian' | 'loader' | 'analyst' | 'unmasker' | 'auditor' = 'worker',
) => unseal(db.pool(login), kek);
const seal = () => db.pool('custodian').query('select masking.seal()');
const sealed = () => isSealed(db.pool('worker'));
const keys = async () =>
  (await db.superuser.query('select purpose, field, version, state, wrapped from masking.keys order by 1, 3'))
    .rows;

test('while the database is sealed nothing is masked, and nothing is lost', async () => {
  const messages = [message(), message('no JSON')];
  const batchId = await stage(db, messages);
  expect(await sqlstate(mask(db, batchId))).toBe('ML001');
  for (const { id } of messages) expect(await outcomesOf(db, id)).toEqual([]);
  expect(await ledgerOf(db, batchId)).toMatchObject({ masked: false, lost: false });

  await unsealWith(db.kek);
  expect(await mask(db, batchId)).toHaveLength(2);
});

test('the first unsealing makes a key for each field and purpose, wrapped', async () => {
  expect(await keys()).toEqual([]);
  await unsealWith(db.kek);
  const made = await keys();
  expect(made.map(({ purpose, field, state }) => [purpose, field, state])).toEqual([
    ['cipher', 'ip', 'active'],
    ['cipher', 'device_id', 'active'],
    ['cipher', 'body', 'active'],
    ['token', 'ip', 'active'],
    ['token', 'device_id', 'active'],
  ]);
  const { rows } = await db.superuser.query('select masking.unwrapped(wrapped) as key from masking.keys');
  const clear = rows.map(({ key }) => (key as Buffer).toString('hex'));
  expect(new Set(clear).size).toBe(5);
  for (const key of clear) expect(key).toHaveLength(64);
});

test('sealing removes the key-encryption key, unsealing with it brings the same keys back', async () => {
  await unsealWith(db.kek);
  const before = await keys();
  await seal();
  expect(await sealed()).toBe(true);
  expect((await db.superuser.query('select from masking.kek')).rowCount).toBe(0);
  expect(await sqlstate(mask(db, await stage(db, [message()])))).toBe('ML001');
  await seal();
  await unsealWith(db.kek, 'custodian');
  expect(await sealed()).toBe(false);
  expect(await keys()).toEqual(before);
});

test('another key-encryption key does not unseal', async () => {
  await unsealWith(db.kek);
  await seal();
  expect(await sqlstate(unsealWith(randomBytes(32)))).toBe('ML002');
  expect(await sealed()).toBe(true);
  expect((await db.superuser.query('select from masking.kek')).rowCount).toBe(0);
});

test.each([0, 1, 31, 33, 64])('a key-encryption key of %i bytes is refused', async (length) => {
  expect(await sqlstate(unsealWith(randomBytes(length)))).toBe('ML002');
  expect(await sealed()).toBe(true);
  expect(await keys()).toEqual([]);
});

test('another key-encryption key while the database is unsealed is refused and changes nothing', async () => {
  await unsealWith(db.kek);
  expect(await sqlstate(unsealWith(randomBytes(32)))).toBe('ML003');
  await maskAll(db, [message()]);
  await seal();
  await unsealWith(db.kek);
});

test('the same key-encryption key again changes nothing', async () => {
  await unsealWith(db.kek);
  const before = await keys();
  await unsealWith(db.kek);
  expect(await keys()).toEqual(before);
});

test('workers that start together all unseal, and make one set of keys', async () => {
  await Promise.all([1, 2, 3, 4].map(() => unsealWith(db.kek)));
  expect(await sealed()).toBe(false);
  expect(await keys()).toHaveLength(5);
});

test('of two different first keys at once one wins, and the other is refused', async () => {
  const states = await Promise.all(
    [randomBytes(32), randomBytes(32)].map((kek) => sqlstate(unsealWith(kek))),
  );
  expect(states.sort()).toEqual(['ML003', 'none']);
  expect(await keys()).toHaveLength(5);
});

test('nobody but workers and custodians may unseal, and nobody but custodians may seal', async () => {
  for (const login of ['loader', 'analyst', 'unmasker', 'auditor'] as const) {
    expect(await sqlstate(unsealWith(db.kek, login))).toBe('42501');
  }
  await unsealWith(db.kek);
  for (const login of ['worker', 'loader', 'analyst', 'unmasker', 'approver', 'auditor'] as const) {
    expect(await sqlstate(db.pool(login).query('select masking.seal()'))).toBe('42501');
  }
  expect(await sealed()).toBe(false);
});

test('sealing waits for the batch that is being masked', async () => {
  await unsealWith(db.kek);
  const batchId = await stage(
    db,
    Array.from({ length: 500 }, () => message()),
  );
  const [receipts] = await Promise.all([
    mask(db, batchId).catch((error: { code: string }) => error.code),
    seal(),
  ]);
  // Whichever came first: all of the batch, or nothing of it.
  expect(receipts === 'ML001' ? 0 : receipts.length).toBe((await ledgerOf(db, batchId)).inserted ?? 0);
});

test('no key-encryption key reaches the log or an error, neither a right one nor a wrong one', async () => {
  const [wrong, short] = [randomBytes(32), randomBytes(31)];
  const log = markLog();
  await unsealWith(db.kek);
  const errors = [await failure(unsealWith(wrong))];
  await seal();
  errors.push(
    await failure(unsealWith(wrong)),
    await failure(unsealWith(short)),
    await failure(unsealWith(short, 'analyst')),
  );
  for (const error of errors) expect(error).toBeDefined();
  await unsealWith(db.kek);

  const said = Buffer.concat([log.since(), Buffer.from(errors.map(everythingIn).join())]);
  for (const key of [db.kek, wrong, short]) expect(holds(said, key)).toBe(false);
  const { rows } = await db.superuser.query('select masking.unwrapped(wrapped) as key from masking.keys');
  for (const { key } of rows) expect(holds(log.since().subarray(0, said.length), key as Buffer)).toBe(false);
});
