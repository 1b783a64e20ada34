import { afterEach, beforeEach, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import {
  distinct,
  expectAllReveal,
  finish,
  liftLimits,
  load,
  maskedLogins,
  openTransaction,
  rotate,
  sharedLogins,
  step,
  untilBlocked,
  type Login,
} from '../support/keys.ts';
import { makePartitionOf, middleOfMonth } from '../support/partitions.ts';
import { sqlstate } from '../support/sqlstate.ts';
import { event, stage } from '../support/staging.ts';

let db: TestDatabase;
beforeEach(async () => {
  db = await createTestDatabase();
  await liftLimits(db);
});
afterEach(() => db.drop());

const inMonth = (offset: number) => middleOfMonth(db.superuser, offset);
const makePartition = (offset: number) => makePartitionOf(db.superuser, offset);
const partitions = async () =>
  (
    await db.superuser.query(
      `select c.relname as name from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'public.user_logins'::regclass order by 1`,
    )
  ).rows.map(({ name }) => name);
const keepMonths = (months: number | null) =>
  db.pool('custodian').query('select masking.set_retention(keep_months => $1)', [months]);
/** Runs retention. Returns the number of dropped partitions, and of tables that still have overdue logins. */
const runRetention = async (): Promise<{ dropped: number; overdue: number }> =>
  (await db.pool('worker').query('select * from masking.retention()')).rows[0];
const dropOverdue = async (): Promise<number> => (await runRetention()).dropped;
const purgeStep = async (rows: number): Promise<boolean> =>
  (await db.pool('worker').query('select more from masking.purge_step(max_rows => $1)', [rows])).rows[0].more;
async function purge(rows = 500): Promise<void> {
  for (let n = 0; n < 200; n += 1) if (!(await purgeStep(rows))) return;
  throw new Error('the purge does not end');
}
const vault = async (): Promise<string[]> =>
  (await db.superuser.query('select token from masking.vault order by 1')).rows.map(({ token }) => token);
const referenced = async (): Promise<string[]> =>
  distinct((await maskedLogins(db)).flatMap(({ ip, device }) => [ip, device])).sort();
const startPurge = () =>
  db.superuser.query(
    `update masking.retention_policy set purge_position = '00000000-0000-0000-0000-000000000000'`,
  );
const owned = (who: string): Login[] => [{ user: who, ip: `ip-of-${who}`, device: `device-of-${who}` }];

test('without a retention policy nothing is dropped or purged', async () => {
  await makePartition(-30);
  await load(db, owned('old'), await inMonth(-30));
  expect(await dropOverdue()).toBe(0);
  expect(await purgeStep(10)).toBe(false);
  expect(await maskedLogins(db)).toHaveLength(1);
});

test('only partitions that are older than the months to keep are dropped', async () => {
  const [four, three, two] = [await makePartition(-4), await makePartition(-3), await makePartition(-2)];
  for (const month of [-4, -3, -2, -1, 0]) await load(db, owned(`month${month}`), await inMonth(month));
  await keepMonths(2);
  expect(await dropOverdue()).toBe(2);
  const left = await partitions();
  for (const name of [four, three]) expect(left).not.toContain(name);
  expect(left).toContain(two);
  expect((await maskedLogins(db)).map(({ user }) => user).sort()).toEqual(['month-1', 'month-2', 'month0']);
  expect(await dropOverdue()).toBe(0);
});

test('old logins in the default partition are deleted, and the others in it stay', async () => {
  for (const month of [-40, -3, -2, 20]) await load(db, owned(`month${month}`), await inMonth(month));
  await keepMonths(2);
  expect(await dropOverdue()).toBe(0);
  expect((await maskedLogins(db)).map(({ user }) => user).sort()).toEqual(['month-2', 'month20']);
  await purge(1);
  expect(await vault()).toEqual(await referenced());
});

test('a purge deletes the entries that only dropped logins had, and no others', async () => {
  await makePartition(-5);
  await load(db, [...owned('old'), { user: 'both', ip: 'shared', device: 'shared' }], await inMonth(-5));
  const kept = await load(
    db,
    [...owned('new'), { user: 'both', ip: 'shared', device: null }],
    await inMonth(0),
  );
  for (const [id, login] of await load(db, sharedLogins(30), await inMonth(0))) kept.set(id, login);
  await keepMonths(1);
  await dropOverdue();
  expect(await vault()).not.toEqual(await referenced());
  await purge(4);
  expect(await vault()).toEqual(await referenced());
  await expectAllReveal(db, kept);
});

test('an interrupted purge resumes where it stopped', async () => {
  await load(db, sharedLogins(40), await inMonth(-9));
  await keepMonths(1);
  await dropOverdue();
  const before = await vault();
  await purgeStep(5);
  const { client, pid } = await openTransaction(db.pool('worker'));
  await client.query('select masking.purge_step(max_rows => 5)');
  await db.superuser.query('select pg_terminate_backend($1, 10000)', [pid]);
  client.release();
  expect(await vault()).toHaveLength(before.length - 5);
  await purge(5);
  expect(await vault()).toEqual([]);
});

test('a purge during a rotation keeps the values of logins that still have old tokens', async () => {
  const kept = await load(db, sharedLogins(30), await inMonth(0));
  await load(db, owned('old'), await inMonth(-9));
  await rotate(db, 'token');
  await keepMonths(1);
  await dropOverdue();
  for (let more = true; more;) {
    more = await step(db, 7);
    await startPurge();
    await purge(6);
    await expectAllReveal(db, kept);
  }
  expect(await vault()).toEqual(await referenced());
});

/** Creates an entry that no login has any more (an orphan), and stages a login with its value. */
async function stageOrphan(): Promise<{ batchId: string; sent: Map<string, Login> }> {
  await load(db, owned('someone'), await inMonth(-9));
  await keepMonths(1);
  await dropOverdue();
  const id = '00000000-0000-4000-8000-000000000001';
  const [login] = owned('someone');
  const body = event({ user_id: login!.user, ip: login!.ip, device_id: login!.device });
  return {
    batchId: await stage(db, [{ id, body, sentAt: await inMonth(0) }]),
    sent: new Map([[id, login!]]),
  };
}

test('a purge waits for a batch that uses an orphan, and then keeps it', async () => {
  const { batchId, sent } = await stageOrphan();
  const batch = await openTransaction(db.pool('worker'));
  await batch.client.query('select masking.mask_batch($1)', [batchId]);
  const purging = await openTransaction(db.pool('worker'));
  const purged = purging.client.query('select masking.purge_step()');
  await untilBlocked(db, purging.pid);
  await batch.client.query('commit');
  await purged;
  await purging.client.query('commit');
  for (const { client } of [batch, purging]) client.release();
  expect(await vault()).toEqual(await referenced());
  await expectAllReveal(db, sent);
});

test('a batch with an orphan that is being purged waits, and encrypts the value again', async () => {
  const { batchId, sent } = await stageOrphan();
  const purging = await openTransaction(db.pool('worker'));
  await purging.client.query('select masking.purge_step()');
  const batch = await openTransaction(db.pool('worker'));
  const masked = batch.client.query('select masking.mask_batch($1)', [batchId]);
  await untilBlocked(db, batch.pid);
  await purging.client.query('commit');
  await masked;
  await batch.client.query('commit');
  for (const { client } of [batch, purging]) client.release();
  expect(await vault()).toEqual(await referenced());
  await expectAllReveal(db, sent);
});

test('a rotation step does not restore entries that a concurrent purge deletes', async () => {
  await stageOrphan();
  await rotate(db, 'token');
  const purging = await openTransaction(db.pool('worker'));
  await purging.client.query('select masking.purge_step()');
  const stepping = await openTransaction(db.pool('worker'));
  const stepped = stepping.client.query('select masking.rotate_step()');
  await untilBlocked(db, stepping.pid);
  await purging.client.query('commit');
  await stepped;
  await stepping.client.query('commit');
  for (const { client } of [stepping, purging]) client.release();
  await finish(db);
  expect(await vault()).toEqual([]);
});

test('retention waits for a running purge and then continues', async () => {
  await makePartition(-5);
  await keepMonths(1);
  const purging = await openTransaction(db.superuser);
  await purging.client.query('select from masking.retention_policy for update');
  const dropping = await openTransaction(db.pool('worker'));
  const dropped = dropping.client.query('select dropped from masking.retention()');
  await untilBlocked(db, dropping.pid);
  // Like a purge step, which locks the policy.
  await purging.client.query('select from public.user_logins');
  await purging.client.query('commit');
  expect((await dropped).rows).toEqual([{ dropped: 1 }]);
  await dropping.client.query('commit');
  for (const { client } of [purging, dropping]) client.release();
});

test('dropped partitions, the policy and the end of a purge are in the audit log', async () => {
  const name = await makePartition(-5);
  await keepMonths(3);
  await dropOverdue();
  await purge();
  const { rows } = await db
    .pool('auditor')
    .query(
      `select action, details from audit.events where action not in ('unseal', 'policy update') order by event_id`,
    );
  expect(rows).toEqual([
    { action: 'set retention', details: { keep_months: 3 } },
    { action: 'drop partition', details: { partition: name } },
    { action: 'purge vault', details: { looked_at: 0, deleted: 0 } },
  ]);
});

test('the months to keep must be from 1 to 1200, and null keeps logins forever', async () => {
  for (const months of [0, -1, 1201]) expect(await sqlstate(keepMonths(months))).toBe('22023');
  await keepMonths(1);
  await keepMonths(null);
  await load(db, owned('old'), await inMonth(-9));
  await dropOverdue();
  expect(await maskedLogins(db)).toHaveLength(1);
});

test('only custodians can set the retention, and only workers can drop and purge', async () => {
  expect(await sqlstate(db.pool('worker').query('select masking.set_retention(1)'))).toBe('42501');
  for (const login of ['custodian', 'analyst', 'auditor'] as const) {
    expect(await sqlstate(db.pool(login).query('select masking.retention()'))).toBe('42501');
    expect(await sqlstate(db.pool(login).query('select masking.purge_step()'))).toBe('42501');
  }
});

test.each([
  ['analyst', 'select from public.user_logins'],
  ['worker', 'select masking.retention()'],
] as const)(
  'overdue partitions stay while a transaction of the %s is open, and are dropped soon after',
  async (login, statement) => {
    await makePartition(-4);
    await load(db, [...owned('old')], await inMonth(-40));
    await keepMonths(2);
    const holder = await openTransaction(db.pool(login));
    await holder.client.query(statement);
    expect(await runRetention()).toEqual({ dropped: 0, overdue: 1 });
    const { rows } = await db.superuser.query(
      `select run_at between now() and now() + interval '5 minutes' as soon
         from graphile_worker.jobs where task_identifier = 'retention'`,
    );
    expect(rows).toEqual([{ soon: true }]);
    await holder.client.query('rollback');
    holder.client.release();
    expect(await runRetention()).toEqual({ dropped: 1, overdue: 0 });
    expect(await maskedLogins(db)).toEqual([]);
  },
);

test('masking continues while retention waits for an analyst', async () => {
  await makePartition(-4);
  await keepMonths(2);
  const analyst = await openTransaction(db.pool('analyst'));
  await analyst.client.query('select from public.user_logins');
  const retaining = runRetention();
  const batchId = await stage(db, [{ id: '00000000-0000-4000-8000-000000000002', body: event() }]);
  const masking = await openTransaction(db.pool('worker'));
  await masking.client.query(`set local statement_timeout = '5s'`);
  expect(await sqlstate(masking.client.query('select masking.mask_batch($1)', [batchId]))).toBe('none');
  expect((await retaining).overdue).toBe(1);
  for (const { client } of [analyst, masking]) {
    await client.query('rollback');
    client.release();
  }
});
