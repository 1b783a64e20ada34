import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { StackLogin } from '../../local/stack/logins.ts';
import { createPool } from '../../src/database/pool.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { sqlstate } from '../support/sqlstate.ts';
import { event, maskAll, message, stage } from '../support/staging.ts';

const LOGINS = ['loader', 'worker', 'analyst', 'unmasker', 'approver', 'custodian', 'auditor'] as const;
const SECRETS = [
  'masking.keys',
  'masking.kek',
  'masking.vault',
  'staging.quarantine',
  'staging.raw_messages',
];
const READER = 'test_reads_all_data';

let db: TestDatabase;
let batchId: string;
beforeAll(async () => {
  db = await createTestDatabase();
  await maskAll(db, [message(event({ user_id: 'somebody' })), message('no JSON')]);
  batchId = await stage(db, [message()]);
});
afterAll(() => db.drop());

const attempt = (login: StackLogin, statement: string): Promise<string> =>
  sqlstate(db.pool(login).query(statement.replaceAll('$batch', `'${batchId}'`)));

async function attempts(logins: readonly StackLogin[], statements: readonly string[]): Promise<string[]> {
  const outcomes: string[] = [];
  for (const login of logins) {
    for (const statement of statements)
      outcomes.push(`${await attempt(login, statement)} ${login}: ${statement}`);
  }
  return outcomes;
}

const withState = (outcomes: string[], state: string) =>
  outcomes.filter((each) => each.startsWith(`${state} `));

const except = (...logins: StackLogin[]) => LOGINS.filter((login) => !logins.includes(login));

/** Statements, and the only logins that may run them. */
const RESERVED: [string[], string[]][] = [
  [SECRETS.map((table) => `select from ${table}`), []],
  [SECRETS.map((table) => `delete from ${table}`), []],
  [['select from staging.inbox', 'select from masking.kek_inbox'], []],
  [['select from staging.batches', 'select from staging.totals'], ['auditor']],
  [['select from staging.workers', 'update staging.batches set lost_at = now()'], []],
  [['select from public.user_logins', 'select from public.user_logins_compat'], ['analyst', 'unmasker']],
  [['select from public.user_logins_default', 'delete from public.user_logins', 'truncate public.user_logins'], []],
  [[`insert into public.user_logins values ('u', now(), gen_random_uuid())`, 'create table public.mine ()'], []],
  [['select masking.mask_batch($batch)', 'select staging.heartbeat($batch)', 'select staging.sweep_batches()'], ['worker']],
  [['select staging.clean_ledger()', 'select staging.maintain_partitions()', 'select from graphile_worker.jobs'], ['worker']],
  [['select masking.is_sealed()'], ['worker', 'custodian', 'auditor']],
  [['select staging.status()'], ['worker', 'custodian', 'auditor']],
  [['select staging.backlog()'], ['loader', 'worker', 'auditor']],
  [[`select masking.active_key('token', 'ip')`, `select masking.create_key('token', 'ip')`, 'select masking.unwrapped(null)'], []],
  [['select masking.mask_rows($batch, false)', `select masking.padded('x')`, `select masking.token_of('x', 1)`], []],
  [['select crypto.gen_random_bytes(1)', `select crypto.hmac('a', 'b', 'sha256')`, `select crypto.pgp_sym_decrypt('', '')`], []],
  [['create table graphile_worker.mine ()'], []],
  [['set role logins_owner', 'create schema mine', 'create role logins_mine', 'set session_replication_role = replica'], []],
]; // prettier-ignore

test.each(RESERVED)('%j: allowed to %j and to nobody else', async (statements, allowed) => {
  const others = await attempts(except(...(allowed as StackLogin[])), statements);
  expect(withState(others, '42501')).toEqual(others);
  const theirs = await attempts(allowed as StackLogin[], statements);
  expect(withState(theirs, 'none')).toEqual(theirs);
});

test('only custodians may seal, only loaders may submit, and only workers may close a batch', async () => {
  const others = [
    ...(await attempts(except('custodian'), ['select masking.seal()'])),
    ...(await attempts(except('loader'), [
      'select staging.submit_batch($batch, 1)',
      'copy staging.inbox from stdin',
    ])),
    ...(await attempts(except('worker'), ['select staging.close_batch($batch)'])),
  ];
  expect(withState(others, '42501')).toEqual(others);
  expect(await attempt('loader', 'select staging.submit_batch($batch, 1)')).toBe('ML011');
});

test('a loader cannot read what it has written', async () => {
  const insert = `insert into staging.inbox values ($batch, array[gen_random_uuid()], '{r}', array[now()], '{1}', '{b}')`;
  expect(await attempt('loader', `${insert} returning bodies`)).toBe('42501');
  expect(await attempt('loader', `begin; ${insert}; rollback`)).toBe('none');
});

describe('a login with pg_read_all_data', () => {
  test('reads no row of keys, vault, quarantine or staging', async () => {
    await db.superuser.query(
      `drop role if exists ${READER}; create role ${READER} login password 'reader' in role pg_read_all_data`,
    );
    const url = new URL(db.urls.analyst);
    url.username = READER;
    url.password = 'reader';
    const reader = createPool(url.toString(), { max: 1, applicationName: 'test reader' });
    try {
      for (const table of [...SECRETS, 'staging.inbox', 'masking.kek_inbox']) {
        const { rows } = await reader.query(`select count(*)::int as n from ${table}`);
        expect({ table, rows }).toEqual({ table, rows: [{ n: 0 }] });
      }
      // It does read a table without row-level security. If it saw nothing, the test would prove nothing.
      expect((await reader.query('select from public.user_logins')).rowCount).toBeGreaterThan(0);
      expect(await sqlstate(reader.query(`select crypto.gen_random_bytes(1)`))).toBe('none');
      expect(await sqlstate(reader.query(`select masking.active_key('token', 'ip')`))).toBe('42501');
    } finally {
      await reader.end();
      await db.superuser.query(`drop role ${READER}`);
    }
    for (const table of SECRETS) {
      expect((await db.superuser.query(`select from ${table}`)).rowCount).toBeGreaterThan(0);
    }
  });
});

// The project's functions run as logins_owner, write graphile-worker's tables and call its functions. A login
// that could change these could run its own code as logins_owner.
test.each([
  'create function graphile_worker.spy() returns int language sql as $$ select 1 $$',
  'create or replace function graphile_worker.force_unlock_workers(worker_ids text[]) returns void language sql as $$ $$',
  'create or replace view graphile_worker.jobs as select 1 as id',
  'create trigger spy before insert on graphile_worker._private_jobs execute function suppress_redundant_updates_trigger()',
  'create rule spy as on insert to graphile_worker._private_jobs do also select 1',
  `alter table graphile_worker._private_jobs alter column payload set default '1'`,
  'create policy spy on graphile_worker._private_jobs',
  'set role logins_owner',
])('no login can plant code that would run as logins_owner: %s', async (statement) => {
  for (const login of LOGINS) expect(await attempt(login, statement)).toBe('42501');
});
