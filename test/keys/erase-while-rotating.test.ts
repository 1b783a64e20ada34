import { expect, test } from 'vitest';
import { type TestDatabase } from '../support/database.ts';
import {
  distinct,
  expectDuplicatesExact,
  finish,
  load,
  loadBeforeEach,
  maskedLogins,
  openTransaction,
  revealAll,
  rotate,
  sharedLogins,
  step,
  untilBlocked,
  versionsIn,
  type Login,
} from '../support/keys.ts';

/** Logins of several users. `ann` shares some values with the others. */
const LOGINS: Login[] = [
  ...sharedLogins(40),
  { user: 'ann', ip: 'ann-1', device: 'ann-1' },
  { user: 'ann', ip: '10.0.0.0', device: 'device-0' },
  { user: 'ann', ip: 'ann-2', device: 'device-1' },
  { user: 'ann', ip: '10.0.1.1', device: 'ann-2' },
  { user: 'zoe', ip: 'zoe', device: 'zoe' },
];

let db: TestDatabase;
let sent: Map<string, Login>;
loadBeforeEach(LOGINS, (loaded) => ({ db, sent } = loaded));

const erase = () => db.pool('custodian').query(`select masking.erase_user('ann', 'a test')`);
const eraseStep = async (rows: number): Promise<boolean> =>
  (await db.pool('worker').query('select more from masking.erase_step(max_rows => $1)', [rows])).rows[0].more;
async function eraseAll(rows = 500): Promise<void> {
  for (let n = 0; n < 100; n += 1) if (!(await eraseStep(rows))) return;
  throw new Error('the erasure does not end');
}

/** Ann has no tokens, all others still have theirs, and the vault has no entry of hers under any token. */
async function expectErased(): Promise<void> {
  const seen = await maskedLogins(db);
  expect(
    distinct(seen.filter(({ user }) => user === 'ann').flatMap(({ ip, device }) => [ip, device])),
  ).toEqual([]);
  const others = new Map([...sent].filter(([, { user }]) => user !== 'ann'));
  const left = seen.filter(({ id }) => others.has(id));
  expect(left).toHaveLength(others.size);
  const ips = await revealAll(db, 'ip', distinct(left.map(({ ip }) => ip)));
  const devices = await revealAll(db, 'device_id', distinct(left.map(({ device }) => device)));
  for (const { id, ip, device } of left) {
    expect(ip && ips.get(ip)).toBe(others.get(id)!.ip);
    expect(device && devices.get(device)).toBe(others.get(id)!.device);
  }
  const { rows } = await db.superuser.query<{ token: string }>('select token from masking.vault order by 1');
  const carried = distinct(seen.flatMap(({ ip, device }) => [ip, device]));
  const named = await db.superuser.query<{ token: string }>(
    `select distinct coalesce(r.new_token, t.token) as token
       from unnest($1::uuid[]) as t (token) left join masking.retokened r on r.old_token = t.token order by 1`,
    [carried],
  );
  // During a rotation a value may have an entry under both tokens. There are no other entries.
  const known = new Set([...named.rows.map(({ token }) => token), ...carried]);
  expect(rows.filter(({ token }) => !known.has(token))).toEqual([]);
}

async function expectDone(): Promise<void> {
  await finish(db, 6);
  await expectErased();
  expect(await versionsIn(db, 'ip')).toEqual([3]);
  expect(await versionsIn(db, 'device')).toEqual([4]);
  const others = new Map([...sent].filter(([, { user }]) => user !== 'ann'));
  await expectDuplicatesExact(db, others);
}

test('a user can be erased at any point of a token rotation', async () => {
  for (let steps = 0; steps < 16; steps += 3) {
    await rotate(db, 'token');
    for (let n = 0; n < steps; n += 1) await step(db, 12);
    await erase();
    await eraseAll(2);
    await expectErased();
    await finish(db, 12);
    await expectErased();
    for (const [id, login] of await load(
      db,
      LOGINS.filter(({ user }) => user === 'ann'),
    ))
      sent.set(id, login);
  }
  await erase();
  await eraseAll();
  await expectErased();
});

test('an erasure that started before a rotation completes during it', async () => {
  await erase();
  await eraseStep(1);
  await rotate(db, 'token');
  for (let more = true; more;) {
    more = await eraseStep(1);
    await step(db, 8);
  }
  await expectDone();
});

test('values that are loaded again under a new token are erased under both tokens', async () => {
  await rotate(db, 'token');
  const again = await load(
    db,
    LOGINS.filter(({ user }) => user === 'ann'),
  );
  for (const [id, login] of again) sent.set(id, login);
  await erase();
  await eraseAll(2);
  await expectErased();
  await expectDone();
});

test.each(['vault', 'logins'])('an erasure waits for a rotation step in phase %s', async (phase) => {
  await rotate(db, 'token', 'ip');
  await rotate(db, 'token', 'device_id');
  if (phase === 'logins') await step(db);
  await erase();
  const stepping = await openTransaction(db.pool('worker'));
  await stepping.client.query('select masking.rotate_step(max_rows => 30)');
  const erasing = await openTransaction(db.pool('worker'));
  const erased = erasing.client.query('select masking.erase_step()');
  await untilBlocked(db, erasing.pid);
  await stepping.client.query('commit');
  await erased;
  await erasing.client.query('commit');
  for (const { client } of [stepping, erasing]) client.release();
  await eraseAll();
  await expectErased();
  await expectDone();
});

test.each(['vault', 'logins'])('a rotation in phase %s waits for an erasure step', async (phase) => {
  await rotate(db, 'token', 'ip');
  await rotate(db, 'token', 'device_id');
  if (phase === 'logins') await step(db);
  await erase();
  const erasing = await openTransaction(db.pool('worker'));
  await erasing.client.query('select masking.erase_step(max_rows => 2)');
  const stepping = await openTransaction(db.pool('worker'));
  const stepped = stepping.client.query('select masking.rotate_step(max_rows => 30)');
  await untilBlocked(db, stepping.pid);
  await erasing.client.query('commit');
  await stepped;
  await stepping.client.query('commit');
  for (const { client } of [stepping, erasing]) client.release();
  await eraseAll();
  await expectErased();
  await expectDone();
});
