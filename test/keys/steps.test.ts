import { expect, test } from 'vitest';
import { type TestDatabase } from '../support/database.ts';
import {
  distinct,
  expectAllReveal,
  expectDuplicatesExact,
  finish,
  loadBeforeEach,
  openTransaction,
  rotate,
  rotationsOf,
  sharedLogins,
  step,
  versionsIn,
  type Login,
} from '../support/keys.ts';
import { maskAll, message } from '../support/staging.ts';
import { sqlstate } from '../support/sqlstate.ts';

let db: TestDatabase;
let sent: Map<string, Login>;
loadBeforeEach(sharedLogins(60), (loaded) => ({ db, sent } = loaded));

const custodian = (sql: string) => db.pool('custodian').query(sql);
const events = async (action: string) =>
  (await db.pool('auditor').query('select details from audit.events where action = $1', [action])).rows;
const statusRotations = async () =>
  (await db.pool('auditor').query('select rotations from staging.status()')).rows[0].rotations;
/** Number of vault entries under a token key. */
const entriesUnder = async (version: number): Promise<number> =>
  (
    await db.superuser.query(
      'select count(*)::int as n from masking.vault where get_byte(uuid_send(token), 0) = $1',
      [version],
    )
  ).rows[0].n;
const vaultEntries = async () =>
  (await db.superuser.query('select token, ciphertext from masking.vault order by token')).rows;

test('a step that is rolled back is repeated, at any point of a rotation', async () => {
  await rotate(db);
  for (let more = true; more;) {
    const { client } = await openTransaction(db.pool('worker'));
    const before = await rotationsOf(db);
    await client.query('select masking.rotate_step(max_rows => 9)');
    await client.query('rollback');
    client.release();
    expect(await rotationsOf(db)).toEqual(before);
    more = await step(db, 9);
  }
  await expectAllReveal(db, sent);
  await expectDuplicatesExact(db, sent);
});

test('a step whose connection is killed does not change the rotation', async () => {
  await rotate(db, 'token');
  await step(db, 9);
  const before = await rotationsOf(db);
  const { client, pid } = await openTransaction(db.pool('worker'));
  await client.query('select masking.rotate_step(max_rows => 9)');
  await db.superuser.query('select pg_terminate_backend($1, 10000)', [pid]);
  client.release();
  expect(await rotationsOf(db)).toEqual(before);
  await finish(db, 9);
  await expectAllReveal(db, sent);
  await expectDuplicatesExact(db, sent);
});

test('workers that step concurrently process each row once', async () => {
  await rotate(db);
  const worker = async () => {
    for (let n = 0; n < 300 && (await rotationsOf(db)).some(({ state }) => state === 'running'); n += 1) {
      await step(db, 3);
    }
  };
  await Promise.all([worker(), worker(), worker()]);
  const rotations = await rotationsOf(db);
  expect(rotations.map(({ state }) => state)).toEqual(Array(5).fill('done'));
  const { rows } = await db.superuser.query('select count(*)::int as entries from masking.vault');
  const ofVault = rotations
    .filter(({ purpose }) => purpose === 'cipher')
    .reduce((sum, { rows }) => sum + rows, 0);
  expect(ofVault).toBe(rows[0].entries);
  await expectAllReveal(db, sent);
  await expectDuplicatesExact(db, sent);
});

test('a second worker skips a rotation with a running step and does not wait for it', async () => {
  await rotate(db, 'token', 'ip');
  const { client } = await openTransaction(db.pool('worker'));
  await client.query('select masking.rotate_step(max_rows => 3)');
  expect(await step(db, 3)).toBe(false);
  await client.query('commit');
  client.release();
  expect(await rotationsOf(db)).toMatchObject([{ rows: 3 }]);
});

test('a paused rotation makes no progress, and resumes where it stopped', async () => {
  await rotate(db, 'token', 'ip');
  await step(db, 5);
  await custodian('select masking.pause_rotation()');
  expect(await step(db, 5)).toBe(false);
  expect(await rotationsOf(db)).toMatchObject([{ state: 'paused', rows: 5, problem: null }]);
  await expectAllReveal(db, sent);

  await custodian('select masking.resume_rotation()');
  await step(db, 5);
  expect(await rotationsOf(db)).toMatchObject([{ state: 'running', rows: 10 }]);
  await finish(db);
  await expectDuplicatesExact(db, sent);
});

test('the start, pause, resumption and end of a rotation are in the audit log', async () => {
  await rotate(db, 'token', 'ip');
  await custodian('select masking.pause_rotation()');
  await custodian('select masking.resume_rotation()');
  await finish(db);
  expect(await events('rotate')).toMatchObject([
    { details: { purpose: 'token', field: 'ip', from: 1, to: 3 } },
  ]);
  expect(await events('pause rotation')).toMatchObject([{ details: { rotations: 1 } }]);
  expect(await events('resume rotation')).toMatchObject([{ details: { rotations: 1 } }]);
  expect(await events('rotated')).toMatchObject([
    { details: { purpose: 'token', field: 'ip', from: 1, to: 3 } },
  ]);
  expect((await db.pool('auditor').query('select intact from audit.verify()')).rows).toEqual([
    { intact: true },
  ]);
});

test('resuming adds a job for a worker', async () => {
  await rotate(db, 'token', 'ip');
  await custodian('select masking.pause_rotation()');
  await db.superuser.query('delete from graphile_worker._private_jobs');
  await custodian('select masking.resume_rotation()');
  const { rows } = await db.superuser.query(
    'select task_identifier as task, priority from graphile_worker.jobs',
  );
  expect(rows).toEqual([{ task: 'rotate_keys', priority: 10 }]);
});

test('status shows the progress of each rotation until it completes', async () => {
  expect(await statusRotations()).toEqual([]);
  const total = (await entriesUnder(1)) + sent.size;
  await rotate(db, 'token', 'ip');
  await rotate(db, 'cipher', 'body');
  await step(db, 7);
  expect(await statusRotations()).toEqual([
    {
      purpose: 'token',
      field: 'ip',
      from: 1,
      to: 3,
      state: 'running',
      phase: 'vault',
      rows: 7,
      total,
      percent: Math.floor(700 / total),
      seconds_left: expect.any(Number),
      problem: null,
    },
    {
      purpose: 'cipher', field: 'body', from: 3, to: 4, state: 'running', phase: 'quarantine', rows: 0, problem: null,
      total: null, percent: null, seconds_left: null,
    }, // prettier-ignore
  ]);
  await custodian('select masking.pause_rotation()');
  expect((await statusRotations())[0]).toMatchObject({ rows: 7, total, seconds_left: null });
  await custodian('select masking.resume_rotation()');
  await finish(db);
  expect(await statusRotations()).toEqual([]);
});

test('every step makes progress', async () => {
  await maskAll(db, [message('no JSON'), message('{')]);
  await rotate(db);
  const steps = await finish(db, 3);
  const rows = (await rotationsOf(db)).reduce((sum, rotation) => sum + rotation.rows, 0);
  // Each of the five rotations ends with one or two steps that find no rows, and bodies are done one by one.
  expect(steps).toBeLessThanOrEqual(rows / 3 + 2 + 5 * 2 + 2);
});

const DAMAGES = {
  'swapped with another': `update masking.vault v set ciphertext = o.ciphertext
     from (select (array_agg(token order by token))[1] as a, (array_agg(token order by token))[2] as b
             from masking.vault where key_version = 1) t
     join masking.vault o on o.token = t.b where v.token = t.a`,
  changed: `update masking.vault v
       set ciphertext = set_byte(ciphertext, octet_length(ciphertext) - 5, get_byte(ciphertext, octet_length(ciphertext) - 5) # 1)
     where token = (select token from masking.vault where key_version = 1 order by token limit 1)`,
  truncated: `update masking.vault v set ciphertext = substr(ciphertext, 1, 20)
     where token = (select token from masking.vault where key_version = 1 order by token limit 1)`,
};

const DAMAGED = (['token', 'cipher'] as const).flatMap((purpose) =>
  Object.entries(DAMAGES).map(([damage, sql]) => ({ purpose, damage, sql })),
);

test.each(DAMAGED)(
  'a $purpose rotation pauses at a ciphertext that was $damage, and continues after its repair',
  async ({ purpose, sql }) => {
    const good = await vaultEntries();
    await db.superuser.query(sql);
    const bad = await vaultEntries();
    expect(bad).not.toEqual(good);
    await rotate(db, purpose, 'ip');
    expect(await step(db)).toBe(false);
    const [paused] = await rotationsOf(db);
    expect(paused).toMatchObject({ state: 'paused', phase: 'vault', rows: 0, problem: expect.any(String) });
    expect(await vaultEntries()).toEqual(bad);
    for (const ip of distinct([...sent.values()].map((login) => login.ip))) {
      expect(paused!.problem).not.toContain(ip);
    }
    expect((await statusRotations())[0].problem).toBe(paused!.problem);
    expect(await events('rotation paused')).toHaveLength(1);

    await custodian('select masking.resume_rotation()');
    expect(await step(db)).toBe(false);
    expect(await rotationsOf(db)).toMatchObject([{ state: 'paused' }]);

    for (const { token, ciphertext } of good) {
      await db.superuser.query('update masking.vault set ciphertext = $2 where token = $1', [
        token,
        ciphertext,
      ]);
    }
    await custodian('select masking.resume_rotation()');
    await finish(db, 5);
    expect(await rotationsOf(db)).toMatchObject([{ state: 'done', problem: null }]);
    await expectAllReveal(db, sent);
    await expectDuplicatesExact(db, sent);
  },
);

test('a rotation that paused itself does not stop the others', async () => {
  await db.superuser.query(DAMAGES['changed']);
  await rotate(db, 'token');
  await finish(db);
  expect(await rotationsOf(db)).toMatchObject([
    { field: 'ip', state: 'paused' },
    { field: 'device_id', state: 'done' },
  ]);
  expect(await versionsIn(db, 'device')).toEqual([4]);
});

test('a rotation of bodies pauses at a damaged body', async () => {
  const broken = message('no JSON');
  await maskAll(db, [broken]);
  const change = `update staging.quarantine set body = set_byte(body, octet_length(body) - 5, get_byte(body, octet_length(body) - 5) # 1)`;
  await db.superuser.query(change);
  await rotate(db, 'cipher', 'body');
  expect(await step(db)).toBe(false);
  expect(await rotationsOf(db)).toMatchObject([
    { state: 'paused', phase: 'quarantine', problem: expect.any(String) },
  ]);
  await db.superuser.query(change);
  await custodian('select masking.resume_rotation()');
  await finish(db);
  expect(await rotationsOf(db)).toMatchObject([{ state: 'done', problem: null }]);
});

test('a token rotation does not delete an entry that it cannot decrypt', async () => {
  const { rows } = await db.superuser.query(
    'update masking.vault set key_version = 99 where token = (select token from masking.vault order by token limit 1) returning token',
  );
  await rotate(db, 'token', 'ip');
  await finish(db);
  const kept = await db.superuser.query('select from masking.vault where token = $1', [rows[0].token]);
  expect(kept.rowCount).toBe(1);
});

test('only custodians can pause and resume a rotation', async () => {
  for (const login of ['worker', 'analyst', 'unmasker', 'auditor'] as const) {
    expect(await sqlstate(db.pool(login).query('select masking.pause_rotation()'))).toBe('42501');
    expect(await sqlstate(db.pool(login).query('select masking.resume_rotation()'))).toBe('42501');
  }
});
