/** Background work completes only when nothing is left to do. */
import { beforeEach, describe, expect, test } from 'vitest';
import { type TestDatabase } from '../support/database.ts';
import {
  destroy,
  expectAllReveal,
  expectDuplicatesExact,
  finish,
  keysIn,
  loadBeforeEach,
  maskedLogins,
  openTransaction,
  rotate,
  rotationsOf,
  sharedLogins,
  step,
  versionsIn,
  type Login,
} from '../support/keys.ts';
import { sqlstate } from '../support/sqlstate.ts';
import { event, mask, maskAll, message, stage } from '../support/staging.ts';

let db: TestDatabase;
let sent: Map<string, Login>;
loadBeforeEach(sharedLogins(40), (loaded) => ({ db, sent } = loaded));

const STEPS = ['rotate_step', 'erase_step', 'purge_step'] as const;
const call = (name: (typeof STEPS)[number], rows: number | null) =>
  db.pool('worker').query(`select masking.${name}(max_rows => $1)`, [rows]);
const custodian = (sql: string) => db.pool('custodian').query(sql);
const eventsOf = async (action: string) =>
  (await db.superuser.query('select details from audit.events where action = $1', [action])).rows;
const startPurge = () =>
  db.superuser.query(
    `update masking.retention_policy set purge_position = '00000000-0000-0000-0000-000000000000'`,
  );
const all = async (table: string) =>
  (await db.superuser.query(`select * from ${table} t order by t::text`)).rows;
const protectedState = () =>
  Promise.all(
    ['public.user_logins', 'masking.vault', 'masking.rotations', 'masking.erasures', 'audit.events', 'masking.retention_policy'].map(all),
  ); // prettier-ignore
async function untilPhase(phase: string): Promise<void> {
  while ((await rotationsOf(db))[0]!.phase !== phase) await step(db);
}
/** Restores a login to a saved state, as a restore from a backup would. */
async function restore(saved: Record<string, unknown>): Promise<void> {
  await db.superuser.query('delete from public.user_logins where message_id = $1', [saved['message_id']]);
  await db.superuser.query(
    'insert into public.user_logins select * from jsonb_populate_record(null::public.user_logins, $1)',
    [JSON.stringify(saved)],
  );
}
/** The first login in the order in which steps process them. */
const firstLogin = async () =>
  (
    await db.superuser.query(
      'select * from public.user_logins where masked_ip is not null order by user_id, create_date, message_id limit 1',
    )
  ).rows[0];

describe.each([0, -1, null, 100_001, 2_147_483_647])('a step of %s rows', (rows) => {
  test('is refused, and does not complete a rotation, an erasure or a purge', async () => {
    await rotate(db, 'token', 'ip');
    await untilPhase('logins');
    await custodian(`select masking.erase_user('user-1', 'DSR-1')`);
    await startPurge();
    const before = await protectedState();
    for (const name of STEPS) expect(await sqlstate(call(name, rows))).toBe('22023');
    expect(await protectedState()).toEqual(before);
  });
});

test('a login that gets its old token back is rotated before the rotation completes', async () => {
  const saved = await firstLogin();
  await rotate(db, 'token', 'ip');
  await untilPhase('logins');
  await step(db, 20);
  await restore(saved);
  await finish(db, 20);
  expect(await versionsIn(db, 'ip')).toEqual([3]);
  await destroy(db, 'token', 1);
  await expectAllReveal(db, sent);
  await expectDuplicatesExact(db, sent);
});

test('a value that is restored under its old key is moved before the rotation completes', async () => {
  const saved = (await all('masking.vault')).find(({ token }) => token.startsWith('01'));
  const { token, key_version: version, ciphertext } = saved;
  await rotate(db, 'token', 'ip');
  await untilPhase('logins');
  await db.superuser.query(`delete from masking.retokened where old_token = '${token}'`);
  await db.superuser.query('insert into masking.vault values ($1, $2, $3)', [token, version, ciphertext]);
  await finish(db);
  expect((await all('masking.vault')).filter((entry) => entry.token.startsWith('01'))).toEqual([]);
  await expectAllReveal(db, sent);
});

test('a login that gets its tokens back is cleared before the erasure completes', async () => {
  await maskAll(db, [message('no JSON')]);
  const saved = await firstLogin();
  await db.pool('custodian').query('select masking.erase_user($1, $2)', [saved['user_id'], 'DSR-1']);
  while ((await all('masking.erasures'))[0].phase === 'logins') await call('erase_step', 500);
  await restore(saved);
  for (let more = true; more;) {
    more = (await db.pool('worker').query('select more from masking.erase_step()')).rows[0].more;
  }
  const theirs = (await maskedLogins(db)).filter(({ user }) => user === saved['user_id']);
  expect(theirs.filter(({ ip, device }) => ip !== null || device !== null)).toEqual([]);
  expect(await all('masking.erasures')).toMatchObject([{ phase: 'done' }]);
});

describe('a token key whose rotation is marked done although logins still have its tokens', () => {
  beforeEach(async () => {
    await rotate(db, 'token', 'ip');
    await untilPhase('logins');
    await db.superuser.query(`update masking.rotations set state = 'done', finished_at = now()`);
  });

  test('cannot be destroyed, whatever number of values is given', async () => {
    expect(await sqlstate(destroy(db, 'token', 1))).toBe('ML008');
    for (const losing of [1, 40]) expect(await sqlstate(destroy(db, 'token', 1, losing))).toBe('ML006');
    expect(await keysIn(db, 'retiring')).toEqual(['token ip 1']);
    await expectAllReveal(db, sent);
  });

  test('can be destroyed after another rotation of the field', async () => {
    await rotate(db, 'token', 'ip');
    await finish(db);
    await destroy(db, 'token', 1);
    await expectAllReveal(db, sent);
    await expectDuplicatesExact(db, sent);
  });
});

test('a token key cannot be destroyed in phase vault, even with the number of its values', async () => {
  await rotate(db, 'token', 'ip');
  await step(db, 5);
  const { rows } = await db.superuser.query(
    `select count(*)::int as held from masking.vault where token < '02000000-0000-0000-0000-000000000000'`,
  );
  expect(await sqlstate(destroy(db, 'token', 1, rows[0].held))).toBe('ML008');
  await finish(db);
  await expectAllReveal(db, sent);
});

test.each([null, -1])('destroy_key refuses losing => %s', async (losing) => {
  await rotate(db, 'cipher', 'ip');
  const destroyed = db
    .pool('custodian')
    .query(`select masking.destroy_key('cipher', 1, losing => $1)`, [losing]);
  expect(await sqlstate(destroyed)).toBe('22023');
  expect(await keysIn(db, 'retiring')).toEqual(['cipher ip 1']);
  expect(await eventsOf('destroy key')).toEqual([]);
  await expectAllReveal(db, sent);
});

test.each([
  ['rotate_step', 'worker', 'select masking.rotate_step()'],
  ['erase_step', 'worker', 'select masking.erase_step()'],
  ['purge_step', 'worker', 'select masking.purge_step()'],
  ['destroy_key', 'custodian', `select masking.destroy_key('cipher', 1)`],
] as const)('%s is refused in a REPEATABLE READ or SERIALIZABLE transaction', async (_, login, sql) => {
  for (const level of ['repeatable read', 'serializable']) {
    const { client } = await openTransaction(db.pool(login));
    await client.query(`rollback; begin isolation level ${level}`);
    expect(await sqlstate(client.query(sql))).toBe('25000');
    client.release();
  }
});

test('mask_batch is refused in a transaction that does not see that a key was destroyed', async () => {
  const { client } = await openTransaction(db.pool('worker'));
  const batchId = await stage(db, [message(event({ ip: '198.51.100.77' }))]);
  await client.query('rollback; begin isolation level repeatable read; select');
  await rotate(db, 'cipher', 'ip');
  await finish(db);
  await custodian(`select masking.destroy_key('cipher', 1)`);

  expect(await sqlstate(client.query('select masking.mask_batch($1)', [batchId]))).toBe('25000');
  client.release();
  expect(await mask(db, batchId)).toHaveLength(1);
  const { rowCount } = await db.superuser.query(
    `select from masking.vault v join masking.keys k on k.purpose = 'cipher' and k.version = v.key_version
      where k.state = 'destroyed'`,
  );
  expect(rowCount).toBe(0);
});

test('the end of a purge is in the audit log, with its numbers of entries', async () => {
  const entries = (await all('masking.vault')).length;
  await db.superuser.query('delete from public.user_logins');
  await startPurge();
  for (let more = true; more;) {
    more = (await db.pool('worker').query('select more from masking.purge_step(max_rows => 7)')).rows[0].more;
  }
  expect(await eventsOf('purge vault')).toEqual([{ details: { looked_at: entries, deleted: entries } }]);
});
