/**
 * Runs maintenance, masking and loading while a login holds locks or an open transaction. None of them may
 * wait for long. Maintenance gives up and tries again later.
 */
import { randomUUID } from 'node:crypto';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { StackLogin } from '../../local/stack/logins.ts';
import { unseal } from '../../src/database/kek.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { sqlstate } from '../support/sqlstate.ts';
import { close, event, maskAll, message, stage } from '../support/staging.ts';
import {
  CALLS,
  HELD_CALLS,
  LOCK_MODES,
  LOGINS,
  MAY_STOP,
  MUST_SUCCEED,
  STUCK_AFTER,
  type Login,
} from './holders.ts';

const request = (count: number) =>
  `select unmask.request('ip', array(select masked_ip from public.user_logins limit ${count}), 'why') as id`;

let db: TestDatabase;
const given: Record<string, string> = {};

beforeAll(async () => {
  db = await createTestDatabase();
  const superuser = (statement: string) => db.superuser.query(statement);
  const bodies = Array.from({ length: 20 }, (_, n) => event({ user_id: 'user', ip: `203.0.113.${n}` }));
  const { batchId: old } = await maskAll(db, [...bodies, 'no JSON'].map(message));
  await close(db, old);
  await superuser(`update staging.batches set acked_at = now() - interval '60 days'`);
  // Closes a slot whose batches are acknowledged.
  await superuser(`update staging.slots set opened_at = opened_at - interval '1 minute'`);
  await db.pool('worker').query('select staging.recycle_slots()');
  const [staged, other] = [await stage(db, [message()]), await stage(db, [message()])];

  await superuser('update unmask.policy set approval_above = 2');
  const requested = await db.pool('unmasker').query(request(1));
  const pending = await db.pool('unmasker').query(request(5));

  await db.pool('custodian').query(`select masking.rotate('cipher', 'ip')`);
  await db.pool('custodian').query(`select masking.erase_user('user', 'why')`);
  await db.pool('custodian').query('select masking.set_retention(12)');
  await superuser(`set timezone = 'UTC'; do $$ begin
    execute format('create table public.user_logins_2001_02 partition of public.user_logins for values from (%L) to (%L)',
      '2001-02-01', '2001-03-01');
    alter table public.user_logins_2001_02 owner to logins_owner; end $$; reset timezone`);
  await superuser(
    `update masking.retention_policy set purge_position = '00000000-0000-0000-0000-000000000000'`,
  );
  // The job of a dead worker, for heartbeat, and a job with a later retry, for sweep_batches.
  await superuser(`update graphile_worker._private_jobs set locked_by = 'dead', locked_at = now() - interval '1 hour'
    where key = 'mask_batch:${old}'`);
  await superuser(
    `update graphile_worker._private_jobs set run_at = now() + interval '1 hour' where locked_at is null`,
  );

  const { rows: quarantined } = await superuser('select message_id from staging.quarantine');
  const { rows: retiring } = await superuser(`select version from masking.keys where state = 'retiring'`);
  Object.assign(given, {
    staged,
    other,
    old,
    new: randomUUID(),
    mine: randomUUID(),
    quarantined: quarantined[0].message_id,
    request: requested.rows[0].id,
    pending: pending.rows[0].id,
    retiring: String(retiring[0].version),
    kek: `\\x${db.kek.toString('hex')}`,
  });
});
afterAll(() => db.drop());

const filled = (statement: string) =>
  statement.replaceAll(/\$([a-z]+)/g, (_, name: string) => given[name] ?? '');

async function connect(login: StackLogin): Promise<pg.Client> {
  const client = new pg.Client(db.urls[login]);
  client.on('error', () => {});
  await client.connect();
  await client.query('begin');
  return client;
}

/** Runs a statement in a savepoint, so that a failure does not end the transaction. Returns its SQLSTATE. */
async function stateInSavepoint(client: pg.Client, statement: string): Promise<string> {
  await client.query('savepoint before');
  const state = await sqlstate(client.query(statement));
  await client.query(state === 'none' ? 'release savepoint before' : 'rollback to savepoint before');
  return state;
}

/** Runs all calls. Returns those that hang, those that must succeed and fail, and unexpected errors. */
async function stopped(): Promise<string[]> {
  const names: string[] = [];
  for (const [name, [login, statement]] of Object.entries(CALLS)) {
    const client = await connect(login);
    await client.query(`set local statement_timeout = '${STUCK_AFTER}'`);
    const state = await sqlstate(client.query(filled(statement)));
    await client.query('rollback');
    await client.end();
    if (state === '57014' || (MUST_SUCCEED.has(name) && state !== 'none')) names.push(name);
    // Maintenance may fail only because it did not get a lock.
    else if (!['none', '55P03'].includes(state)) names.push(`${name}: ${state}`);
  }
  return names;
}

/** Takes every lock on tables, views and rows that a login can take. Returns the number of locks. */
async function lockAll(client: pg.Client, schemas: string): Promise<number> {
  const { rows } = await db.superuser.query<{ name: string }>(
    `select format('%I.%I', n.nspname, c.relname) as name
       from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where n.nspname = any ($1) and c.relkind in ('r', 'p', 'v', 'm') order by 1`,
    [schemas.split(' ')],
  );
  let locks = 0;
  for (const { name } of rows) {
    for (const statement of [
      ...LOCK_MODES.map((mode) => `lock table ${name} in ${mode} mode nowait`),
      `select from ${name}`,
      `select from ${name} for key share nowait`,
      `select from ${name} for share nowait`,
      `select from ${name} for update nowait`,
    ]) {
      if ((await stateInSavepoint(client, statement)) === 'none') locks += 1;
    }
  }
  return locks;
}

const OURS = 'public staging masking unmask audit crypto graphile_migrate';
type Hold = (client: pg.Client) => Promise<unknown>;

const HOLDERS: [string, Login, Hold][] = LOGINS.flatMap((login) => [
  [`${login} locks everything that it can`, login, (client: pg.Client) => lockAll(client, OURS)],
  [`${login} locks graphile_worker`, login, (client: pg.Client) => lockAll(client, 'graphile_worker')],
  ...Object.entries(HELD_CALLS[login]).map(([name, statement]): [string, Login, Hold] => [
    `${login} has called ${name}`,
    login,
    (client) => client.query(filled(statement)).catch(() => {}),
  ]),
]);

test('all calls succeed if no login holds a lock', async () => {
  expect(await stopped()).toEqual([]);
});

test('each maintenance call has work to do', async () => {
  const client = await connect('worker');
  const answer = async (statement: string) => {
    await client.query('savepoint before');
    const { rows } = await client.query(statement);
    await client.query('rollback to savepoint before');
    return rows[0];
  };
  expect(await answer('select emptied as n from staging.recycle_slots()')).toEqual({ n: 1 });
  expect(await answer(`select staging.heartbeat('alive') as n`)).toEqual({ n: 1 });
  expect(await answer(`select staging.sweep_batches(interval '0') as n`)).toEqual({ n: 2 });
  expect(await answer('select staging.clean_ledger() as n')).toEqual({ n: 1 });
  expect(await answer('select * from staging.maintain_partitions(6)')).toEqual({ made: 3, missing: 0 });
  expect(await answer('select * from masking.retention()')).toEqual({ dropped: 1, overdue: 0 });
  for (const step of ['rotate', 'erase', 'purge']) {
    expect(await answer(`select more from masking.${step}_step(5)`)).toEqual({ more: true });
  }
  await client.end();
});

test('every function that changes something is in the list of each login that may call it', async () => {
  const { rows } = await db.superuser.query<{ login: Login; names: string[] }>(
    `select substring(r.rolname from 8) as login, array_agg(n.nspname || '.' || p.proname order by 1) as names
       from pg_roles r
      cross join pg_proc p join pg_namespace n on n.oid = p.pronamespace
      where r.rolname = any ($1) and n.nspname in ('public', 'staging', 'masking', 'unmask', 'audit')
        and p.provolatile = 'v' and has_schema_privilege(r.oid, n.oid, 'usage') and has_function_privilege(r.oid, p.oid, 'execute')
      group by 1`,
    [LOGINS.map((login) => `logins_${login}`)],
  );
  for (const { login, names } of rows) {
    expect(
      names.filter((name) => HELD_CALLS[login][name] === undefined).map((name) => `${login}: ${name}`),
    ).toEqual([]);
  }
});

test('no function takes an advisory lock, because any login could take the same lock', async () => {
  const { rows } = await db.superuser.query(
    `select p.proname from pg_proc p join pg_namespace n on n.oid = p.pronamespace
      where n.nspname in ('public', 'staging', 'masking', 'unmask', 'audit') and p.prosrc ~ 'advisory'`,
  );
  expect(rows).toEqual([]);
});

test.each(HOLDERS)(
  'maintenance does not hang, and masking and loading continue, while %s',
  async (name, login, hold) => {
    const holder = await connect(login);
    try {
      await hold(holder);
      const allowed = MAY_STOP[name] ?? [];
      expect((await stopped()).filter((each) => !allowed.includes(each))).toEqual([]);
    } finally {
      await holder.end();
      // Rolling back a seal does not undo it.
      await unseal(db.pool('worker'), db.kek);
    }
  },
);
