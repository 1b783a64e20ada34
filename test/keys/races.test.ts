import { expect, test } from 'vitest';
import { type TestDatabase } from '../support/database.ts';
import {
  distinct,
  expectAllReveal,
  expectDuplicatesExact,
  finish,
  loadBeforeEach,
  maskedLogins,
  openTransaction,
  request,
  rotate,
  rotationsOf,
  sharedLogins,
  untilBlocked,
  type Login,
} from '../support/keys.ts';

let db: TestDatabase;
let sent: Map<string, Login>;
loadBeforeEach(sharedLogins(40), (loaded) => ({ db, sent } = loaded));

test('a rotation step that commits during a reveal does not remove a value from it', async () => {
  const tokens = distinct((await maskedLogins(db)).map(({ ip }) => ip));
  const id = await request(db, 'ip', tokens);
  await rotate(db, 'token', 'ip');
  const stepping = await openTransaction(db.superuser);
  // The reveal waits here when it starts to decrypt, after everything else.
  await stepping.client.query('lock table masking.keys in access exclusive mode');
  const revealing = await openTransaction(db.pool('unmasker'));
  const revealed = revealing.client.query('select * from unmask.reveal($1)', [id]);
  await untilBlocked(db, revealing.pid);
  await stepping.client.query('select masking.rotate_step()');
  await stepping.client.query('commit');
  const { rows } = await revealed;
  await revealing.client.query('commit');
  for (const { client } of [stepping, revealing]) client.release();
  const values = distinct([...sent.values()].map(({ ip }) => ip));
  expect(new Set(rows.map(({ value }) => value))).toEqual(new Set(values));
});

const versions = async (): Promise<number[]> =>
  (await db.superuser.query('select distinct key_version as version from masking.vault order by 1')).rows.map(
    ({ version }) => version,
  );

/** Rotates both keys of the addresses. Two workers take one rotation each, beginning with the given one. */
async function bothKeys(first: 'token' | 'cipher') {
  await rotate(db, first, 'ip');
  await rotate(db, first === 'token' ? 'cipher' : 'token', 'ip');
  const [one, other] = [await openTransaction(db.pool('worker')), await openTransaction(db.pool('worker'))];
  await one.client.query('select masking.rotate_step()');
  const stepped = other.client.query('select masking.rotate_step()');
  await untilBlocked(db, other.pid);
  await one.client.query('commit');
  await stepped;
  await other.client.query('commit');
  for (const { client } of [one, other]) client.release();
  await finish(db);
  expect((await rotationsOf(db)).map(({ state }) => state)).toEqual(['done', 'done']);
}

test('a cipher step concurrent with a token step leaves no entry under the old key', async () => {
  await bothKeys('token');
  expect(await versions()).toEqual([2, 4]);
  await expectAllReveal(db, sent);
  await expectDuplicatesExact(db, sent);
});

test('a token step concurrent with a cipher step leaves no entry under the old key', async () => {
  await bothKeys('cipher');
  expect(await versions()).toEqual([2, 4]);
});
