import { randomBytes } from 'node:crypto';
import { expect, test } from 'vitest';
import { bytea, copyIn, encodeRows } from '../../src/database/copy.ts';
import { fingerprintOf, isSealed, rewrap, unseal } from '../../src/database/kek.ts';
import { type TestDatabase } from '../support/database.ts';
import {
  destroy,
  expectAllReveal,
  finish,
  loadBeforeEach,
  openTransaction,
  rotate,
  sharedLogins,
  untilBlocked,
  type Login,
} from '../support/keys.ts';
import { failure, sqlstate } from '../support/sqlstate.ts';
import { mask, message, stage } from '../support/staging.ts';

let db: TestDatabase;
let sent: Map<string, Login>;
loadBeforeEach(sharedLogins(20), (loaded) => ({ db, sent } = loaded));

const NEXT = randomBytes(32);
const custodian = () => db.pool('custodian');
const seal = () => custodian().query('select masking.seal()');
const actions = async () =>
  (await db.pool('auditor').query('select action, actor from audit.events order by event_id')).rows.map(
    ({ action, actor }) => `${actor} ${action}`,
  );
const wrapped = async () =>
  (
    await db.superuser.query(
      'select wrapped from masking.keys where wrapped is not null order by purpose, version',
    )
  ).rows.map(({ wrapped: key }) => (key as Buffer).toString('hex'));
const clear = async () =>
  (
    await db.superuser.query(
      `select encode(masking.unwrapped(wrapped), 'hex') as key from masking.keys where wrapped is not null order by purpose, version`,
    )
  ).rows;
const expectUnseals = async (kek: Buffer) => {
  await unseal(db.pool('worker'), kek);
  await expectAllReveal(db, sent);
};

test('rewrapping wraps all data keys again, without changing them or sealing the database', async () => {
  const [before, keys] = [await wrapped(), await clear()];
  await rewrap(custodian(), NEXT);
  const after = await wrapped();
  expect(after).toHaveLength(before.length);
  expect(after.filter((key) => before.includes(key))).toEqual([]);
  expect(await clear()).toEqual(keys);
  expect(await isSealed(custodian())).toBe(false);
  expect(await mask(db, await stage(db, [message()]))).toHaveLength(1);
});

test('after rewrapping the new key unseals, and the old key is refused as an earlier one', async () => {
  await rewrap(custodian(), NEXT);
  await seal();
  const refusal = await failure(unseal(db.pool('worker'), db.kek));
  expect(refusal!.code).toBe('ML002');
  // A key that this database never had is refused with another message.
  const stranger = await failure(unseal(db.pool('worker'), randomBytes(32)));
  expect(stranger!.code).toBe('ML002');
  expect(refusal!.message).not.toBe(stranger!.message);
  expect(await isSealed(custodian())).toBe(true);
  await expectUnseals(NEXT);
});

test('an earlier key-encryption key cannot become the key again (ML002)', async () => {
  expect(await sqlstate(rewrap(custodian(), db.kek))).toBe('none');
  await rewrap(custodian(), NEXT);
  await rewrap(custodian(), randomBytes(32));
  const before = await wrapped();
  for (const old of [db.kek, NEXT]) expect(await sqlstate(rewrap(custodian(), old))).toBe('ML002');
  expect(await wrapped()).toEqual(before);
});

test('a key of the wrong length and a null key are refused', async () => {
  const before = await wrapped();
  for (const kek of [randomBytes(31), randomBytes(33), Buffer.alloc(0)]) {
    expect(await sqlstate(rewrap(custodian(), kek))).toBe('ML002');
  }
  const client = await custodian().connect();
  const data = encodeRows([bytea], [[null]]);
  expect(await sqlstate(copyIn(client, 'copy masking.next_kek_inbox from stdin (format binary)', data))).toBe(
    'ML002',
  );
  client.release(true);
  expect(await wrapped()).toEqual(before);
  await seal();
  await expectUnseals(db.kek);
});

test('a sealed database cannot be rewrapped', async () => {
  await seal();
  expect(await sqlstate(rewrap(custodian(), NEXT))).toBe('ML001');
  await expectUnseals(db.kek);
});

test('rewrapping with the current key changes nothing and is not recorded', async () => {
  const before = await wrapped();
  await rewrap(custodian(), db.kek);
  expect(await wrapped()).toEqual(before);
  expect(await actions()).not.toContain('local_custodian rewrap');
});

test('rewrapping leaves destroyed keys destroyed', async () => {
  await rotate(db, 'cipher', 'ip');
  await finish(db);
  await destroy(db, 'cipher', 1);
  await rewrap(custodian(), NEXT);
  const { rows } = await db.superuser.query(`select wrapped from masking.keys where state = 'destroyed'`);
  expect(rows).toEqual([{ wrapped: null }]);
  await seal();
  await expectUnseals(NEXT);
});

test('a rotation continues under a new key-encryption key', async () => {
  await rotate(db);
  await finish(db, 3, 5).catch(() => {});
  await rewrap(custodian(), NEXT);
  expect(await finish(db, 3)).toBeGreaterThan(5);
  await seal();
  await expectUnseals(NEXT);
});

test.each(['after the COPY', 'while it waits for a lock'])(
  'a rewrap whose connection is killed %s changes nothing',
  async (moment) => {
    const before = await wrapped();
    const { client, pid } = await openTransaction(custodian());
    const holder = await openTransaction(db.superuser);
    const copy = () =>
      copyIn(client, 'copy masking.next_kek_inbox from stdin (format binary)', encodeRows([bytea], [[NEXT]]));
    let copied: Promise<unknown> = Promise.resolve();
    if (moment.startsWith('while')) {
      // The fingerprint is among the last rows that a rewrap writes. It waits for this uncommitted row.
      await holder.client.query(
        'insert into masking.kek_history (fingerprint) select masking.fingerprint_of($1)',
        [NEXT],
      );
      copied = copy().catch(() => {});
      await untilBlocked(db, pid);
    } else await copy();
    await holder.client.query('select pg_terminate_backend($1, 10000)', [pid]);
    await holder.client.query('rollback');
    holder.client.release();
    await copied;
    client.release();

    expect(await wrapped()).toEqual(before);
    expect(await sqlstate(unseal(db.pool('worker'), NEXT))).toBe('ML003');
    await seal();
    expect(await sqlstate(unseal(db.pool('worker'), NEXT))).toBe('ML002');
    await expectUnseals(db.kek);
    // The killed rewrap has not recorded its key as an earlier one.
    expect(await sqlstate(rewrap(custodian(), NEXT))).toBe('none');
  },
);

test('a lock on the keys blocks a rewrap only until its lock times out', async () => {
  const holder = await openTransaction(db.superuser);
  await holder.client.query('lock table masking.keys in row exclusive mode');
  expect(await sqlstate(rewrap(custodian(), NEXT))).toBe('55P03');
  await holder.client.query('rollback');
  holder.client.release();
  await rewrap(custodian(), NEXT);
});

test('custodians and auditors see the fingerprints of the key-encryption keys', async () => {
  await rewrap(custodian(), NEXT);
  for (const login of ['custodian', 'auditor'] as const) {
    const { rows } = await db
      .pool(login)
      .query('select fingerprint, replaced_at is null as wanted from masking.list_keks()');
    expect(rows).toEqual([
      { fingerprint: fingerprintOf(NEXT), wanted: true },
      { fingerprint: fingerprintOf(db.kek), wanted: false },
    ]);
  }
  expect(await sqlstate(db.pool('worker').query('select * from masking.list_keks()'))).toBe('42501');
});

test('the refusal of a wrong key names the fingerprints of that key and of the right one', async () => {
  await rewrap(custodian(), NEXT);
  const stranger = randomBytes(32);
  for (const [state, prepare] of [
    ['ML003', async () => {}],
    ['ML002', seal],
  ] as const) {
    await prepare();
    for (const kek of [db.kek, stranger]) {
      const refusal = await failure(unseal(db.pool('worker'), kek));
      expect(refusal!.code).toBe(state);
      for (const each of [kek, NEXT]) expect(refusal!.message).toContain(fingerprintOf(each));
    }
  }
});

test('rewrapping waits for a batch that is being masked', async () => {
  const batch = await openTransaction(db.pool('worker'));
  await batch.client.query('select masking.mask_batch($1)', [await stage(db, [message()])]);
  const rewrapping = rewrap(custodian(), NEXT);
  const pid = async () =>
    (
      await db.superuser.query(
        `select pid from pg_stat_activity where query like 'copy masking.next_kek_inbox%'`,
      )
    ).rows;
  await expect.poll(pid).toHaveLength(1);
  await untilBlocked(db, (await pid())[0].pid);
  await batch.client.query('commit');
  batch.client.release();
  await rewrapping;
  await seal();
  await unseal(db.pool('worker'), NEXT);
});

test('sealing, unsealing and rewrapping are in the audit log, without a key', async () => {
  await seal();
  await unseal(custodian(), db.kek);
  // Unsealing an unsealed database and a refused unsealing are not recorded.
  await unseal(db.pool('worker'), db.kek);
  expect(await sqlstate(unseal(db.pool('worker'), NEXT))).toBe('ML003');
  await rewrap(custodian(), NEXT);
  expect((await actions()).filter((each) => !each.startsWith('postgres '))).toEqual([
    'local_worker unseal',
    'local_custodian seal',
    'local_custodian unseal',
    'local_custodian rewrap',
  ]);
  const { rows } = await db.pool('auditor').query('select details::text as details from audit.events');
  for (const { details } of rows) {
    for (const kek of [db.kek, NEXT]) expect(details).not.toContain(kek.toString('hex').slice(0, 8));
  }
  expect((await db.pool('auditor').query('select intact from audit.verify()')).rows).toEqual([
    { intact: true },
  ]);
});

test('only custodians can change the key-encryption key and seal, and nobody can read an inbox', async () => {
  for (const login of ['worker', 'loader', 'analyst', 'unmasker', 'auditor'] as const) {
    expect(await sqlstate(rewrap(db.pool(login), NEXT))).toBe('42501');
    expect(await sqlstate(db.pool(login).query('select masking.seal()'))).toBe('42501');
  }
  expect(await sqlstate(custodian().query('select * from masking.next_kek_inbox'))).toBe('42501');
  expect(await sqlstate(custodian().query('select * from masking.kek_history'))).toBe('42501');
});
