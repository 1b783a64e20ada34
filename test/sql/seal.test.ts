import { randomBytes } from 'node:crypto';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { StackLogin } from '../../local/stack/logins.ts';
import { bytea, copyIn, encodeRows } from '../../src/database/copy.ts';
import { isSealed, unseal } from '../../src/database/kek.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { holds } from '../support/forms.ts';
import { openTransaction } from '../support/keys.ts';
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
const wipe = async () =>
  (await db.pool('worker').query('select masking.wipe_kek() as wiped')).rows[0].wiped as boolean;
const keys = async () =>
  (await db.superuser.query('select purpose, field, version, state, wrapped from masking.keys order by 1, 3'))
    .rows;

test('a sealed database masks nothing and loses nothing', async () => {
  const messages = [message(), message('no JSON')];
  const batchId = await stage(db, messages);
  expect(await sqlstate(mask(db, batchId))).toBe('ML001');
  for (const { id } of messages) expect(await outcomesOf(db, id)).toEqual([]);
  expect(await ledgerOf(db, batchId)).toMatchObject({ masked: false, lost: false });

  await unsealWith(db.kek);
  expect(await mask(db, batchId)).toHaveLength(2);
});

test('the first unsealing creates a wrapped key for each field and purpose', async () => {
  expect(await keys()).toEqual([]);
  await unsealWith(db.kek);
  const created = await keys();
  expect(created.map(({ purpose, field, state }) => [purpose, field, state])).toEqual([
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

test('sealing removes the key-encryption key, and unsealing restores the same data keys', async () => {
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

test('a different key-encryption key does not unseal the database', async () => {
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

test('a different key-encryption key is refused while the database is unsealed', async () => {
  await unsealWith(db.kek);
  expect(await sqlstate(unsealWith(randomBytes(32)))).toBe('ML003');
  await maskAll(db, [message()]);
  await seal();
  await unsealWith(db.kek);
});

test('unsealing again with the same key-encryption key changes nothing', async () => {
  await unsealWith(db.kek);
  const before = await keys();
  await unsealWith(db.kek);
  expect(await keys()).toEqual(before);
});

test('workers that start at the same time all unseal, and create one set of keys', async () => {
  await Promise.all([1, 2, 3, 4].map(() => unsealWith(db.kek)));
  expect(await sealed()).toBe(false);
  expect(await keys()).toHaveLength(5);
});

test('if two different first key-encryption keys arrive at the same time, one is refused', async () => {
  const states = await Promise.all(
    [randomBytes(32), randomBytes(32)].map((kek) => sqlstate(unsealWith(kek))),
  );
  expect(states.sort()).toEqual(['ML003', 'none']);
  expect(await keys()).toHaveLength(5);
});

test('only workers and custodians may unseal, and only custodians may seal', async () => {
  for (const login of ['loader', 'analyst', 'unmasker', 'auditor'] as const) {
    expect(await sqlstate(unsealWith(db.kek, login))).toBe('42501');
  }
  await unsealWith(db.kek);
  for (const login of ['worker', 'loader', 'analyst', 'unmasker', 'approver', 'auditor'] as const) {
    expect(await sqlstate(db.pool(login).query('select masking.seal()'))).toBe('42501');
  }
  expect(await sealed()).toBe(false);
});

test('a batch that is masked during a seal is masked completely or not at all', async () => {
  await unsealWith(db.kek);
  const batchId = await stage(
    db,
    Array.from({ length: 500 }, () => message()),
  );
  const [receipts] = await Promise.all([
    mask(db, batchId).catch((error: { code: string }) => error.code),
    seal(),
  ]);
  expect(receipts === 'ML001' ? 0 : receipts.length).toBe((await ledgerOf(db, batchId)).inserted ?? 0);
});

const FIND = `select unmask.request_find('ip', '203.0.113.1', 'INC-1')`;
const IS_SEALED = 'select masking.is_sealed()';
/** Who reads the key in which way, and the SQLSTATE of the same statement after a seal. */
const HOLDERS: [string, StackLogin, string, string, string][] = [
  ['an auditor', 'auditor', 'read committed', IS_SEALED, 'none'],
  ['a worker', 'worker', 'read committed', IS_SEALED, 'none'],
  ['an unmasker', 'unmasker', 'read committed', FIND, 'ML001'],
  ['an unmasker with an old snapshot', 'unmasker', 'repeatable read', FIND, 'ML001'],
];

test.each(HOLDERS)(
  'an open transaction of %s that has read the key does not prevent sealing',
  async (_, login, isolation, readKey, state) => {
    await unsealWith(db.kek);
    const holder = await openTransaction(db.pool(login));
    await holder.client.query(`rollback; begin isolation level ${isolation}; ${readKey}; savepoint s`);

    const custodian = await openTransaction(db.pool('custodian'));
    await custodian.client.query('rollback');
    const notices: string[] = [];
    custodian.client.on('notice', ({ message: text }) => notices.push(text ?? ''));
    const startedAt = performance.now();
    await custodian.client.query('select masking.seal()');
    expect(performance.now() - startedAt).toBeLessThan(1_500);
    // The notice names the session that holds the key's table.
    expect(notices).toHaveLength(1);
    for (const part of [`local_${login}`, String(holder.pid)]) expect(notices[0]).toContain(part);

    // Nothing waits, and nothing can use the key, not even a transaction whose old snapshot contains it.
    const batchId = await stage(db, [message()]);
    expect(await sqlstate(mask(db, batchId))).toBe('ML001');
    expect(await sqlstate(holder.client.query(readKey))).toBe(state);
    await holder.client.query('rollback to s');
    expect(await sqlstate(db.pool('unmasker').query(FIND))).toBe('ML001');
    expect(await sealed()).toBe(true);

    // Heartbeats wipe the key's bytes after the transaction has ended. Unsealing does not wait for that.
    expect(await wipe()).toBe(false);
    await unsealWith(db.kek);
    expect(await mask(db, batchId)).toHaveLength(1);
    await custodian.client.query('select masking.seal()');
    await holder.client.query('rollback');
    expect(await wipe()).toBe(true);
    const { rows } = await db.superuser.query(`select pg_relation_size('masking.kek')::int as size`);
    expect(rows).toEqual([{ size: 0 }]);
    for (const { client } of [holder, custodian]) client.release();
  },
);

test('a prepared transaction that has read the key does not prevent sealing', async () => {
  await unsealWith(db.kek);
  const holder = await openTransaction(db.pool('unmasker'));
  await holder.client.query(`select unmask.request_find('ip', '203.0.113.1', 'INC-1')`);
  await holder.client.query(`prepare transaction '${db.name}'`);
  await seal();
  expect(await sealed()).toBe(true);
  expect(await sqlstate(mask(db, await stage(db, [message()])))).toBe('ML001');
  await unsealWith(db.kek);
  expect(await sealed()).toBe(false);
  await holder.client.query(`rollback prepared '${db.name}'`);
  holder.client.release();
});

test('rolling back a seal does not undo it', async () => {
  await unsealWith(db.kek);
  const custodian = await openTransaction(db.pool('custodian'));
  await custodian.client.query('select masking.seal()');
  await custodian.client.query('rollback');
  custodian.client.release();
  expect(await sealed()).toBe(true);
  await unsealWith(db.kek);
});

test('a seal takes effect although another transaction is unsealing', async () => {
  await unsealWith(db.kek);
  await seal();
  const worker = await openTransaction(db.pool('worker'));
  await copyIn(
    worker.client,
    'copy masking.kek_inbox from stdin (format binary)',
    encodeRows([bytea], [[db.kek]]),
  );
  await seal();
  await worker.client.query('commit');
  worker.client.release();
  expect(await sealed()).toBe(true);
  expect(await wipe()).toBe(true);
});

test('an uncommitted unsealing blocks others only until their lock times out', async () => {
  await unsealWith(db.kek);
  await seal();
  const worker = await openTransaction(db.pool('worker'));
  await copyIn(
    worker.client,
    'copy masking.kek_inbox from stdin (format binary)',
    encodeRows([bytea], [[db.kek]]),
  );
  expect(await sqlstate(unsealWith(db.kek))).toBe('55P03');
  // A wrong key is refused without waiting.
  expect(await sqlstate(unsealWith(randomBytes(32)))).toBe('ML002');
  await worker.client.query('rollback');
  worker.client.release();
  await unsealWith(db.kek);
});

test('no key-encryption key, right or wrong, appears in the log or in an error', async () => {
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

  const output = Buffer.concat([log.since(), Buffer.from(errors.map(everythingIn).join())]);
  for (const key of [db.kek, wrong, short]) expect(holds(output, key)).toBe(false);
  const { rows } = await db.superuser.query('select masking.unwrapped(wrapped) as key from masking.keys');
  for (const { key } of rows)
    expect(holds(log.since().subarray(0, output.length), key as Buffer)).toBe(false);
});
