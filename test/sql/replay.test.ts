import { randomBytes, randomUUID } from 'node:crypto';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { until } from '../support/pipeline.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { openTransaction, untilBlocked } from '../support/keys.ts';
import { sqlstate } from '../support/sqlstate.ts';
import { event, maskAll, message, outcomesOf } from '../support/staging.ts';

let db: TestDatabase;
beforeEach(async () => {
  db = await createTestDatabase();
});
afterEach(() => db.drop());

const replay = async (ids: (string | null)[] | null) =>
  (await db.pool('custodian').query('select * from staging.replay($1)', [ids])).rows[0];
const events = async () =>
  (await db.superuser.query(`select details from audit.events where action = 'replay'`)).rows;
const quarantine = async (bodies: string[]): Promise<string[]> => {
  const messages = bodies.map((body) => message(body));
  await maskAll(db, messages);
  return messages.map(({ id }) => id);
};
/** Number of temporary files that sessions of this database wrote because work_mem was too small. */
const temporaryFiles = async (): Promise<number> =>
  (await db.superuser.query('select temp_files::int as n from pg_stat_database where datname = current_database()'))
    .rows[0].n; // prettier-ignore

test('a replay is recorded once in the audit log, with the outcome of its messages', async () => {
  const ids = await quarantine(['no JSON', '{']);
  expect(await replay(ids)).toEqual({ rows: 2, inserted: 0, quarantined: 2 });
  expect(await events()).toEqual([{ details: { messages: 2, loaded: 0, quarantined: 2 } }]);
  expect(await outcomesOf(db, ids[0]!)).toEqual([{ quarantined: 'body: not JSON' }]);
});

test('a replay that finds no quarantined message returns zeros and is not recorded', async () => {
  await quarantine(['no JSON']);
  for (const ids of [[], [randomUUID()], [null], ['00000000-0000-0000-0000-000000000000', null]]) {
    expect(await replay(ids)).toEqual({ rows: 0, inserted: 0, quarantined: 0 });
  }
  expect(await events()).toEqual([]);
  expect((await db.superuser.query('select from staging.batches')).rowCount).toBe(1);
});

test('a replay in a REPEATABLE READ transaction is refused, and the message stays quarantined', async () => {
  const ids = await quarantine(['no JSON']);
  const { client } = await openTransaction(db.pool('custodian'));
  await client.query('rollback; begin isolation level repeatable read');
  expect(await sqlstate(client.query('select staging.replay($1)', [ids]))).toBe('25000');
  client.release();
  expect(await outcomesOf(db, ids[0]!)).toEqual([{ quarantined: 'body: not JSON' }]);
});

test('a replay of null is refused', async () => {
  expect(await sqlstate(replay(null))).toBe('22023');
});

test('a replay is refused while an erasure runs, because the erasure would miss its messages', async () => {
  const ids = await quarantine([JSON.stringify({ user_id: 'ann', ip: 7 })]);
  await db.pool('custodian').query(`select masking.erase_user('ann', 'DSR-1')`);
  for (let more = true; more;) {
    expect(await sqlstate(replay(ids))).toBe('ML008');
    more = (await db.pool('worker').query('select more from masking.erase_step()')).rows[0].more;
  }
  expect(await replay(ids)).toMatchObject({ rows: 0 });
  expect(await outcomesOf(db, ids[0]!)).toEqual([]);
});

test('an erasure that starts during a replay waits for it, and erases the replayed messages', async () => {
  const ids = await quarantine([JSON.stringify({ user_id: 'ann', ip: 7 })]);
  const replaying = await openTransaction(db.pool('worker'));
  await replaying.client.query('select staging.replay($1)', [ids]);
  const erasing = await openTransaction(db.pool('custodian'));
  const erased = erasing.client.query(`select masking.erase_user('ann', 'DSR-1')`);
  await untilBlocked(db, erasing.pid);
  await replaying.client.query('commit');
  await erased;
  await erasing.client.query('commit');
  for (const { client } of [replaying, erasing]) client.release();
  for (let more = true; more;) {
    more = (await db.pool('worker').query('select more from masking.erase_step()')).rows[0].more;
  }
  expect(await outcomesOf(db, ids[0]!)).toEqual([]);
});

test('a replay of more messages or bytes than fit into a batch is refused', async () => {
  expect(await sqlstate(replay(Array.from({ length: 10_001 }, () => randomUUID())))).toBe('54000');
  await db.superuser.query(
    `insert into staging.quarantine (message_id, sent_at, reason, key_version, body)
     select gen_random_uuid(), now(), 'body: not JSON', 3, decode(repeat('00', 1024 * 1024), 'hex')
       from generate_series(1, 65)`,
  );
  const { rows } = await db.superuser.query<{ id: string }>(
    'select message_id as id from staging.quarantine',
  );
  expect(await sqlstate(replay(rows.map(({ id }) => id)))).toBe('54000');
  expect((await db.superuser.query('select from staging.quarantine')).rowCount).toBe(65);
});

/** Settings under which Postgres would write temporary files: little memory, and only plans that sort. */
const LITTLE_MEMORY = `set work_mem = '64kB'; set hash_mem_multiplier = 1; set enable_nestloop = off; set enable_hashjoin = off`;

test.each([
  ['replay', 'custodian', 'select * from staging.replay(array(select unnest($1::uuid[])))'],
  ['rotation of bodies', 'worker', 'select masking.rotate_step(max_rows => 100000)'],
] as const)(
  'a %s writes no body to a temporary file, whatever the settings of its caller',
  async (what, login, sql) => {
    const ids = await quarantine(
      Array.from({ length: 300 }, () => `{"user_id": ${randomBytes(4000).toString('hex')}`),
    );
    if (what !== 'replay') await db.pool('custodian').query(`select masking.rotate('cipher', 'body')`);
    const before = await temporaryFiles();
    const { client } = await openTransaction(db.pool(login));
    await client.query(LITTLE_MEMORY);
    await client.query(sql, what === 'replay' ? [ids] : []);
    await client.query('commit');
    // Postgres counts a session's files when the session ends, at the latest.
    const { rows } = await client.query('select pg_stat_force_next_flush(), pg_backend_pid() as pid');
    await client.end();
    await until(
      async () =>
        (await db.superuser.query('select from pg_stat_activity where pid = $1', [rows[0].pid])).rowCount ===
        0,
    );
    expect(await temporaryFiles()).toBe(before);
  },
);

test('a rotation writes no value to a temporary file, whatever the settings of its caller', async () => {
  await maskAll(
    db,
    Array.from({ length: 2000 }, (_, n) =>
      message(event({ user_id: `u${n}`, ip: `10.1.${n >> 8}.${n & 255}`, device_id: randomBytes(100).toString('hex') })),
    ), // prettier-ignore
  );
  await db.pool('custodian').query(`select masking.rotate('cipher', 'device_id')`);
  await db.pool('custodian').query(`select masking.rotate('token', 'device_id')`);
  const before = await temporaryFiles();
  const { client } = await openTransaction(db.pool('worker'));
  await client.query(`commit; ${LITTLE_MEMORY}`);
  for (let more = true; more;) {
    more = (await client.query('select more from masking.rotate_step(max_rows => 100000)')).rows[0].more;
  }
  const { rows } = await client.query('select pg_stat_force_next_flush(), pg_backend_pid() as pid');
  await client.end();
  await until(
    async () =>
      (await db.superuser.query('select from pg_stat_activity where pid = $1', [rows[0].pid])).rowCount === 0,
  );
  expect(await temporaryFiles()).toBe(before);
});
