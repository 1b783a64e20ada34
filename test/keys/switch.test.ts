import { randomUUID } from 'node:crypto';
import { expect, test } from 'vitest';
import { type TestDatabase } from '../support/database.ts';
import {
  expectAllReveal,
  expectDuplicatesExact,
  finish,
  keysIn,
  load,
  loadBeforeEach,
  maskedLogins,
  openTransaction,
  rotate,
  sharedLogins,
  step,
  untilBlocked,
  versionsIn,
  type Login,
} from '../support/keys.ts';
import { event, stage } from '../support/staging.ts';

let db: TestDatabase;
let sent: Map<string, Login>;
loadBeforeEach(sharedLogins(20), (loaded) => ({ db, sent } = loaded));

/** Stages logins without masking them, and adds them to `sent`. */
async function stageLogins(logins: readonly Login[]): Promise<string> {
  const messages = logins.map(({ user, ip, device }) => ({
    id: randomUUID(),
    body: event({ user_id: user, ip, device_id: device }),
  }));
  for (const [n, { id }] of messages.entries()) sent.set(id, logins[n]!);
  return stage(db, messages);
}

/** A login with known values, and a login with new values. */
const LATE = [
  { ...sharedLogins(1)[0]!, user: 'late' },
  { user: 'late', ip: '10.9.9.9', device: 'device-late' },
];
const maskIn = (client: { query(sql: string, values: unknown[]): Promise<unknown> }, batchId: string) =>
  client.query('select masking.mask_batch($1)', [batchId]);

test('a rotation waits for a batch that is being masked, and then rotates its logins', async () => {
  const batch = await openTransaction(db.pool('worker'));
  await maskIn(batch.client, await stageLogins(LATE));
  const rotation = await openTransaction(db.pool('custodian'));
  const rotating = rotation.client.query(`select masking.rotate('token')`);
  await untilBlocked(db, rotation.pid);
  expect(await keysIn(db, 'retiring')).toEqual([]);

  await batch.client.query('commit');
  batch.client.release();
  await rotating;
  await rotation.client.query('commit');
  rotation.client.release();
  await finish(db, 3);
  expect(await versionsIn(db, 'ip')).toEqual([3]);
  expect(await versionsIn(db, 'device')).toEqual([4]);
  await expectAllReveal(db, sent);
  await expectDuplicatesExact(db, sent);
});

test('a batch that starts while the keys change waits, and uses the new keys', async () => {
  const batchId = await stageLogins(LATE);
  const rotation = await openTransaction(db.pool('custodian'));
  await rotation.client.query(`select masking.rotate()`);
  const batch = await openTransaction(db.pool('worker'));
  const masking = maskIn(batch.client, batchId);
  await untilBlocked(db, batch.pid);

  await rotation.client.query('commit');
  rotation.client.release();
  await masking;
  await batch.client.query('commit');
  batch.client.release();
  const late = (await maskedLogins(db)).filter(({ user }) => user === 'late');
  expect(late.map(({ ip, device }) => [ip!.slice(0, 2), device!.slice(0, 2)])).toEqual([
    ['03', '04'],
    ['03', '04'],
  ]);
  await finish(db, 3);
  await expectAllReveal(db, sent);
  await expectDuplicatesExact(db, sent);
});

test('a batch that waited for a rotation uses the old keys if the rotation is rolled back', async () => {
  const batchId = await stageLogins(LATE);
  const rotation = await openTransaction(db.pool('custodian'));
  await rotation.client.query(`select masking.rotate()`);
  const batch = await openTransaction(db.pool('worker'));
  const masking = maskIn(batch.client, batchId);
  await untilBlocked(db, batch.pid);

  await rotation.client.query('rollback');
  rotation.client.release();
  await masking;
  await batch.client.query('commit');
  batch.client.release();
  expect(await versionsIn(db, 'ip')).toEqual([1]);
  await expectAllReveal(db, sent);
  await expectDuplicatesExact(db, sent);
});

test('batches and rotation steps do not wait for each other', async () => {
  await rotate(db);
  const stepping = await openTransaction(db.pool('worker'));
  await stepping.client.query('select masking.rotate_step(max_rows => 5)');
  for (const [id, login] of await load(db, [{ user: 'new', ip: '10.8.8.8', device: 'device-new' }]))
    sent.set(id, login);
  const batch = await openTransaction(db.pool('worker'));
  await maskIn(batch.client, await stageLogins([{ user: 'newer', ip: '10.7.7.7', device: 'device-newer' }]));
  await stepping.client.query('commit');
  stepping.client.release();
  await step(db, 5);
  await batch.client.query('commit');
  batch.client.release();
  await finish(db, 5);
  await expectAllReveal(db, sent);
  await expectDuplicatesExact(db, sent);
});

test('a value that is loaded while its entry is being moved has one entry afterwards', async () => {
  await rotate(db, 'token');
  const stepping = await openTransaction(db.pool('worker'));
  await stepping.client.query('select masking.rotate_step()');
  const batch = await openTransaction(db.pool('worker'));
  const masking = maskIn(batch.client, await stageLogins(LATE));
  // The batch waits for the token that the step has inserted and not yet committed.
  await untilBlocked(db, batch.pid);
  await stepping.client.query('commit');
  stepping.client.release();
  await masking;
  await batch.client.query('commit');
  batch.client.release();
  await finish(db);
  await expectAllReveal(db, sent);
  await expectDuplicatesExact(db, sent);
});

test('logins that move into a new partition during a rotation are rotated too', async () => {
  // Far enough ahead to be in the default partition.
  const { rows } = await db.superuser.query<{ ms: string }>(
    `select extract(epoch from date_trunc('month', now()) + interval '6 months 3 days') * 1000 as ms`,
  );
  for (const [id, login] of await load(db, sharedLogins(25), Math.round(Number(rows[0]!.ms))))
    sent.set(id, login);
  await rotate(db, 'token');
  for (let n = 0; n < 8; n += 1) await step(db, 10);
  await db.pool('worker').query('select staging.maintain_partitions(months_ahead => 8)');
  await finish(db, 10);
  expect(await versionsIn(db, 'ip')).toEqual([3]);
  expect(await versionsIn(db, 'device')).toEqual([4]);
  await expectAllReveal(db, sent);
  await expectDuplicatesExact(db, sent);
});
