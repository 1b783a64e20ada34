import { expect, test } from 'vitest';
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
  openTransaction,
  request,
  reveal,
  revealAll,
  rotate,
  rotationsOf,
  sharedLogins,
  step,
  untilBlocked,
  type Login,
} from '../support/keys.ts';
import { failure, sqlstate } from '../support/sqlstate.ts';
import { mask, maskAll, message, stage } from '../support/staging.ts';

let db: TestDatabase;
let sent: Map<string, Login>;
loadBeforeEach(sharedLogins(40), (loaded) => ({ db, sent } = loaded));

const ips = async () => distinct((await maskedLogins(db)).map(({ ip }) => ip));
const devices = async () => distinct((await maskedLogins(db)).map(({ device }) => device));
const events = async (action: string) =>
  (await db.pool('auditor').query('select details from audit.events where action = $1', [action])).rows;
/** The wrapped key in its row, or null. */
const wrapped = async (purpose: string, version: number) =>
  (
    await db.superuser.query('select wrapped from masking.keys where purpose = $1 and version = $2', [
      purpose,
      version,
    ])
  ).rows[0].wrapped;

test('a key that is active, unknown or already destroyed cannot be destroyed (ML007)', async () => {
  expect(await sqlstate(destroy(db, 'token', 1))).toBe('ML007');
  expect(await sqlstate(destroy(db, 'cipher', 99))).toBe('ML007');
  await rotate(db, 'cipher', 'ip');
  await finish(db);
  await destroy(db, 'cipher', 1);
  expect(await sqlstate(destroy(db, 'cipher', 1))).toBe('ML007');
});

test.each(['token', 'cipher'] as const)(
  'a %s key that still has values cannot be destroyed (ML006)',
  async (purpose) => {
    await rotate(db, purpose, 'ip');
    expect(await sqlstate(destroy(db, purpose, 1))).toBe('ML006');
    await step(db, 3);
    expect(await sqlstate(destroy(db, purpose, 1))).toBe('ML006');
    expect(await keysIn(db, 'retiring')).toEqual([`${purpose} ip 1`]);
    await expectAllReveal(db, sent);
  },
);

test('a token key cannot be destroyed while logins are being rotated (ML008)', async () => {
  await rotate(db, 'token', 'ip');
  while ((await rotationsOf(db))[0]!.phase === 'vault') await step(db);
  expect(await sqlstate(destroy(db, 'token', 1))).toBe('ML008');
  await finish(db, 7);
  await destroy(db, 'token', 1);
  await expectAllReveal(db, sent);
  await expectDuplicatesExact(db, sent);
});

test('after a rotation the old keys can be destroyed, and all values can be revealed', async () => {
  await maskAll(db, [message('no JSON')]);
  await rotate(db);
  await finish(db);
  for (const key of await keysIn(db, 'retiring')) {
    const [purpose, , version] = key.split(' ');
    await destroy(db, purpose as 'token', Number(version));
    expect(await wrapped(purpose!, Number(version))).toBeNull();
  }
  expect(await keysIn(db, 'destroyed')).toHaveLength(5);
  expect(await events('destroy key')).toHaveLength(5);
  await expectAllReveal(db, sent);
  await expectDuplicatesExact(db, sent);
});

test('destroying a key that still has values requires their exact number', async () => {
  await rotate(db, 'cipher', 'ip');
  await step(db, 3);
  const lost = (await ips()).length - 3;
  for (const wrong of [lost - 1, lost + 1, 0])
    expect(await sqlstate(destroy(db, 'cipher', 1, wrong))).toBe('ML006');
  const refusal = await failure(destroy(db, 'cipher', 1));
  expect(`${refusal!.message} ${refusal!.hint}`).toContain(String(lost));
  await destroy(db, 'cipher', 1, lost);
  expect(await events('destroy key')).toMatchObject([{ details: { lost } }]);
  expect(await wrapped('cipher', 1)).toBeNull();
});

/** Destroys a key with the addresses of `sent`, and loads a login with an address that is kept. */
async function loseAddresses(
  purpose: 'token' | 'cipher',
): Promise<{ lost: string[]; kept: Map<string, Login> }> {
  const lost = await ips();
  await rotate(db, purpose, 'ip');
  await destroy(db, purpose, 1, lost.length);
  return { lost, kept: await load(db, [{ user: 'later', ip: '10.200.0.1', device: 'device-later' }]) };
}

test.each(['token', 'cipher'] as const)(
  'values of a destroyed %s key cannot be revealed, and all others can',
  async (purpose) => {
    const { lost, kept } = await loseAddresses(purpose);
    expect(await rotationsOf(db)).toMatchObject([{ state: 'done' }]);
    const later = (await maskedLogins(db)).filter(({ id }) => kept.has(id));
    const shown = await revealAll(db, 'ip', [...lost, ...later.map(({ ip }) => ip!)]);
    expect([...shown.values()]).toEqual(['10.200.0.1']);
    expect(new Set((await revealAll(db, 'device_id', await devices())).values())).toEqual(
      new Set([...distinct([...sent.values()].map(({ device }) => device)), 'device-later']),
    );
  },
);

test.each(['token', 'cipher'] as const)(
  'revealing only values of a destroyed %s key is an error',
  async (purpose) => {
    const { lost } = await loseAddresses(purpose);
    expect(await sqlstate(revealAll(db, 'ip', lost))).toMatch(/^ML/);
  },
);

test('the audit log counts the values that were shown, and not the lost ones', async () => {
  const { lost, kept } = await loseAddresses('cipher');
  const later = (await maskedLogins(db)).filter(({ id }) => kept.has(id));
  await revealAll(db, 'ip', [...lost, ...later.map(({ ip }) => ip!)]);
  expect(await events('reveal')).toMatchObject([{ details: { values: 1 } }]);
});

test('a lost value can be revealed after it is loaded again', async () => {
  await loseAddresses('cipher');
  const again = await load(db, [{ user: 'again', ip: [...sent.values()][0]!.ip, device: 'device-again' }]);
  const token = (await maskedLogins(db)).find(({ id }) => again.has(id))!.ip!;
  expect((await revealAll(db, 'ip', [token])).get(token)).toBe([...again.values()][0]!.ip);
});

test('a cipher rotation completes after values were lost with their token key', async () => {
  await loseAddresses('token');
  await rotate(db, 'cipher', 'ip');
  expect(await finish(db, 500, 20)).toBeLessThan(20);
});

test('a token rotation completes after values were lost with their cipher key', async () => {
  const { kept } = await loseAddresses('cipher');
  await rotate(db, 'token', 'ip');
  await finish(db, 7);
  const later = (await maskedLogins(db)).find(({ id }) => kept.has(id))!;
  expect([...(await revealAll(db, 'ip', [later.ip!])).values()]).toEqual(['10.200.0.1']);
});

test('destroying a body key that still has bodies requires their number', async () => {
  const broken = [message('no JSON'), message('{')];
  await maskAll(db, broken);
  await rotate(db, 'cipher', 'body');
  expect(await sqlstate(destroy(db, 'cipher', 3))).toBe('ML006');
  await destroy(db, 'cipher', 3, 2);
  const requested = db
    .pool('unmasker')
    .query(`select unmask.request_quarantined($1, reason => 'a test')`, [broken.map(({ id }) => id)]);
  expect(await sqlstate(requested)).toBe('ML107');
  await expectAllReveal(db, sent);
});

test('a rotation waits for a batch that uses the key, so that destroy counts its values', async () => {
  const batchId = await stage(db, [message()]);
  const batch = await openTransaction(db.pool('worker'));
  await batch.client.query('select masking.mask_batch($1)', [batchId]);
  const rotation = await openTransaction(db.pool('custodian'));
  const rotating = rotation.client.query(`select masking.rotate('cipher', 'ip')`);
  await untilBlocked(db, rotation.pid);
  await batch.client.query('commit');
  batch.client.release();
  await rotating;
  const held = (await ips()).length;
  await rotation.client.query('commit');
  rotation.client.release();
  // One more than before the batch.
  expect(await sqlstate(destroy(db, 'cipher', 1, held - 1))).toBe('ML006');
  await destroy(db, 'cipher', 1, held);
});

test('masking continues after a key was destroyed with its values', async () => {
  await loseAddresses('token');
  expect(await mask(db, await stage(db, [message()]))).toHaveLength(1);
});

test('destroying a key with its values while two workers step does not deadlock', async () => {
  await rotate(db, 'cipher', 'device_id');
  await rotate(db, 'cipher', 'ip');
  const held = (await ips()).length;
  const first = await openTransaction(db.pool('worker'));
  await first.client.query('select masking.rotate_step()');
  const destruction = await openTransaction(db.pool('custodian'));
  const second = await openTransaction(db.pool('worker'));
  const ended = [destruction.client.query(`select masking.destroy_key('cipher', 1, losing => $1)`, [held])];
  await untilBlocked(db, destruction.pid);
  ended.push(second.client.query('select masking.rotate_step()'));
  // It waits, or it skips both rotations.
  await Promise.race([untilBlocked(db, second.pid), ended[1]]);
  await first.client.query('commit');
  // Each call rolls back when it is done. A deadlock would end one of them with an error.
  const outcomes = ended.map((call, n) =>
    sqlstate(call.then(() => [destruction, second][n]!.client.query('rollback'))),
  );
  const codes = await Promise.all(outcomes);
  for (const { client } of [first, destruction, second]) client.release();
  expect(codes).not.toContain('40P01');
});

test('only custodians can destroy keys', async () => {
  for (const login of ['worker', 'analyst', 'unmasker', 'approver', 'auditor'] as const) {
    expect(await sqlstate(db.pool(login).query(`select masking.destroy_key('token', 1)`))).toBe('42501');
  }
});

test('after their key is destroyed, old tokens cannot be requested or revealed (ML107)', async () => {
  const old = await ips();
  const earlier = await request(db, 'ip', old);
  await rotate(db, 'token', 'ip');
  await finish(db);
  await destroy(db, 'token', 1);
  expect(await sqlstate(reveal(db, earlier))).toBe('ML107');
  expect(await sqlstate(request(db, 'ip', old))).toBe('ML107');
  await expectAllReveal(db, sent);
});
