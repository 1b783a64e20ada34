/** Replaced key-encryption keys stay on disk until they are wiped. */
import { randomBytes } from 'node:crypto';
import { expect, test } from 'vitest';
import { rewrap } from '../../src/database/kek.ts';
import { type TestDatabase } from '../support/database.ts';
import {
  expectAllReveal,
  loadBeforeEach,
  openTransaction,
  sharedLogins,
  untilBlocked,
  type Login,
} from '../support/keys.ts';

let db: TestDatabase;
let sent: Map<string, Login>;
loadBeforeEach(sharedLogins(20), (loaded) => ({ db, sent } = loaded));

const NEXT = randomBytes(32);
const custodian = () => db.pool('custodian');

/** Whether each key is on the first page of masking.kek, including dead rows. */
async function pageHolds(...keks: Buffer[]): Promise<boolean[]> {
  await db.superuser.query('create extension if not exists pageinspect schema public');
  const { rows } = await db.superuser.query<{ page: Buffer }>(
    `select public.get_raw_page('masking.kek', 0) as page`,
  );
  return keks.map((kek) => rows[0]!.page.includes(kek));
}
const wipe = async () =>
  (await db.pool('worker').query('select masking.wipe_kek() as wiped')).rows[0].wiped as boolean;
/** Makes the last rewrap older than any query that might need the previous key. */
const age = () =>
  db.superuser.query(`update masking.kek_history set replaced_at = replaced_at - interval '10 seconds'`);

test('a replaced key is wiped from disk when no query can need it, and the current key stays', async () => {
  await rewrap(custodian(), NEXT);
  expect(await wipe()).toBe(false);
  expect(await pageHolds(db.kek, NEXT)).toEqual([true, true]);
  await age();
  const [worker, reader] = [
    await openTransaction(db.pool('worker')),
    await openTransaction(db.pool('auditor')),
  ];
  await reader.client.query('select masking.is_sealed()');
  // A lock on the table prevents the wipe, which does not wait for it.
  expect(await wipe()).toBe(false);
  await reader.client.query('commit');
  expect(await wipe()).toBe(true);
  expect(await pageHolds(db.kek, NEXT)).toEqual([false, true]);
  expect(await wipe()).toBe(true);
  for (const { client } of [worker, reader]) client.release();
  await expectAllReveal(db, sent);
});

test('a query that started before a wipe still finds the key', async () => {
  await rewrap(custodian(), NEXT);
  await age();
  const superuser = await openTransaction(db.superuser);
  const holder = await openTransaction(db.superuser);
  await holder.client.query('select pg_advisory_xact_lock(7)');
  const waiting = superuser.client.query(
    `select masking.unwrapped(k.wrapped) is not null as decrypted
       from (select pg_advisory_xact_lock(7) offset 0) l, masking.keys k where k.version = 1 and k.purpose = 'token'`,
  );
  await untilBlocked(db, superuser.pid);
  expect(await wipe()).toBe(true);
  await holder.client.query('commit');
  expect((await waiting).rows).toEqual([{ decrypted: true }]);
  for (const { client } of [superuser, holder]) client.release();
});
