import { describe, expect, test } from 'vitest';
import { type TestDatabase } from '../support/database.ts';
import {
  destroy,
  distinct,
  expectAllReveal,
  expectDuplicatesExact,
  finish,
  keysIn,
  load,
  loadBeforeEach,
  maskedLogins,
  request,
  reveal,
  revealAll,
  rotate,
  rotationsOf,
  sharedLogins,
  versionsIn,
  type Login,
} from '../support/keys.ts';
import { sqlstate } from '../support/sqlstate.ts';
import { maskAll, message, quarantinedBody } from '../support/staging.ts';

let db: TestDatabase;
let sent: Map<string, Login>;
loadBeforeEach(sharedLogins(60), (loaded) => ({ db, sent } = loaded));

const columnsOfList = async () =>
  Object.keys((await db.pool('custodian').query('select * from masking.list_keys()')).rows[0]);
const ciphertexts = async () =>
  (await db.superuser.query('select token, key_version as version, ciphertext from masking.vault order by 1'))
    .rows;

test('list_keys shows the purpose and the state of each key, but not the key', async () => {
  expect(await columnsOfList()).not.toContain('wrapped');
  expect(await keysIn(db, 'active')).toEqual([
    'cipher body 3',
    'cipher device_id 2',
    'cipher ip 1',
    'token device_id 2',
    'token ip 1',
  ]);
});

test('rotating one token key changes only the tokens of its field', async () => {
  const before = await maskedLogins(db);
  expect(await rotate(db, 'token', 'ip')).toHaveLength(1);
  await finish(db);
  expect(await keysIn(db, 'retiring')).toEqual(['token ip 1']);
  expect(await versionsIn(db, 'ip')).toEqual([3]);
  expect(await versionsIn(db, 'device')).toEqual([2]);
  const devices = (rows: typeof before) => rows.map(({ id, device }) => [id, device]).sort();
  expect(devices(await maskedLogins(db))).toEqual(devices(before));
  await expectAllReveal(db, sent);
  await expectDuplicatesExact(db, sent);
});

test('rotating cipher keys changes every ciphertext and no token', async () => {
  const [maskedBefore, before] = [await maskedLogins(db), await ciphertexts()];
  expect(await rotate(db, 'cipher')).toHaveLength(3);
  await finish(db);
  const after = await ciphertexts();
  expect(after.map(({ token }) => token)).toEqual(before.map(({ token }) => token));
  expect(distinct(after.map(({ version }) => version)).sort()).toEqual([4, 5]);
  const unchanged = after.filter(({ ciphertext }, n) => ciphertext.equals(before[n].ciphertext));
  expect(unchanged).toEqual([]);
  expect(await maskedLogins(db)).toEqual(expect.arrayContaining(maskedBefore));
  await expectAllReveal(db, sent);
});

test('rotating all keys leaves no row under an old key, including quarantined bodies', async () => {
  const broken = message('no JSON');
  await maskAll(db, [broken]);
  expect(await rotate(db)).toHaveLength(5);
  await finish(db);
  const { rows } = await db.superuser.query(
    `select key_version as version from masking.vault union select key_version from staging.quarantine order by 1`,
  );
  expect(rows.map(({ version }) => version)).toEqual([4, 5, 6]);
  expect(await versionsIn(db, 'ip')).toEqual([3]);
  expect(await versionsIn(db, 'device')).toEqual([4]);
  expect((await quarantinedBody(db, broken.id)).toString()).toBe(broken.body);
  await expectAllReveal(db, sent);
  await expectDuplicatesExact(db, sent);
});

test('values that arrive during a rotation get the new key, and equal values get equal tokens', async () => {
  await rotate(db, 'token');
  for (const [id, login] of await load(db, sharedLogins(30))) sent.set(id, login);
  await finish(db, 7);
  await expectAllReveal(db, sent);
  await expectDuplicatesExact(db, sent);
});

test('a key cannot be rotated again until its rotation completes (ML008)', async () => {
  await rotate(db, 'token', 'ip');
  expect(await sqlstate(rotate(db, 'token', 'ip'))).toBe('ML008');
  expect(await sqlstate(rotate(db))).toBe('ML008');
  expect(await keysIn(db, 'active')).toContain('token ip 3');
  expect(await rotate(db, 'token', 'device_id')).toHaveLength(1);
  await finish(db);
  expect(await rotate(db, 'token', 'ip')).toHaveLength(1);
});

test('a key cannot be rotated again while its rotation is paused (ML008)', async () => {
  await rotate(db, 'cipher', 'ip');
  await db.pool('custodian').query('select masking.pause_rotation()');
  expect(await sqlstate(rotate(db, 'cipher', 'ip'))).toBe('ML008');
});

test('bodies have no token key, and other purposes and fields have no keys (ML007)', async () => {
  expect(await sqlstate(rotate(db, 'token', 'body'))).toBe('ML007');
  expect(await sqlstate(rotate(db, 'other' as 'token'))).toBe('ML007');
  expect(await sqlstate(rotate(db, 'cipher', 'user_id'))).toBe('ML007');
});

test('a sealed database rotates nothing (ML001), and a rotation stays where it is', async () => {
  await rotate(db, 'token', 'ip');
  await db.pool('custodian').query('select masking.seal()');
  expect(await sqlstate(rotate(db, 'cipher'))).toBe('ML001');
  expect(await sqlstate(finish(db))).toBe('ML001');
  expect(await rotationsOf(db)).toMatchObject([{ state: 'running', rows: 0 }]);
});

test('only custodians can start a rotation, and only workers can run its steps', async () => {
  for (const login of ['worker', 'loader', 'analyst', 'unmasker', 'approver', 'auditor'] as const) {
    expect(await sqlstate(db.pool(login).query('select masking.rotate()'))).toBe('42501');
  }
  for (const login of ['custodian', 'loader', 'analyst', 'unmasker', 'approver', 'auditor'] as const) {
    expect(await sqlstate(db.pool(login).query('select masking.rotate_step()'))).toBe('42501');
  }
});

async function rotateThrice(): Promise<void> {
  for (const _ of [1, 2, 3]) {
    await rotate(db, 'token');
    await finish(db, 5);
  }
}

describe('after three rotations in a row', () => {
  test('an earlier request reveals its values under its own tokens and the current ones', async () => {
    const old = distinct((await maskedLogins(db)).map(({ device }) => device));
    const [earlier, values] = [await request(db, 'device_id', old), await revealAll(db, 'device_id', old)];
    await rotateThrice();
    const now = distinct((await maskedLogins(db)).map(({ device }) => device));
    const shown = await reveal(db, earlier);
    expect([...shown.keys()].sort()).toEqual([...old, ...now].sort());
    for (const token of old) expect(shown.get(token)).toBe(values.get(token));
    expect(new Set(now.map((token) => shown.get(token)))).toEqual(new Set(values.values()));
  });

  test('tokens from before the rotations can still be requested', async () => {
    const noted = distinct((await maskedLogins(db)).map(({ ip }) => ip));
    const values = await revealAll(db, 'ip', noted);
    await rotateThrice();
    const shown = await revealAll(db, 'ip', noted);
    for (const token of noted) expect(shown.get(token)).toBe(values.get(token));
  });

  test('the old keys can be destroyed, and then only current tokens can be requested', async () => {
    const noted = distinct((await maskedLogins(db)).map(({ ip }) => ip));
    await rotateThrice();
    for (const version of [1, 3, 5]) await destroy(db, 'token', version);
    expect(await keysIn(db, 'destroyed')).toEqual(['token ip 1', 'token ip 3', 'token ip 5']);
    expect(await sqlstate(request(db, 'ip', noted))).toBe('ML107');
    await expectAllReveal(db, sent);
    await expectDuplicatesExact(db, sent);
  });
});
