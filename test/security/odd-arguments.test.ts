/**
 * Calls every function that a role may call, with unusual values for each argument. The call must be refused
 * or leave the important state unchanged. The functions are read from the catalogs, so that new functions are
 * included.
 */
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { StackLogin } from '../../local/stack/logins.ts';
import { loginName } from '../../local/stack/logins.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { finish, load, rotate, rotationsOf, sharedLogins, step } from '../support/keys.ts';
import { maskAll, message, stage } from '../support/staging.ts';
import { ROLES } from './catalogs.ts';

/** SQLSTATEs that a function may raise for an invalid argument. */
const REFUSALS = /^(22023|54000|ML\d{3})$/;

/** Unusual values of each type, as text. */
const ODD: Record<string, (string | null)[]> = {
  integer: [null, '0', '-1', '2147483647', '-2147483648'],
  bigint: [null, '0', '-1', '2147483647', '9223372036854775807'],
  text: [null, '', ' ', 'x'.repeat(100_000)],
  uuid: [null, '00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff'],
  'uuid[]': [null, '{}', '{null}', '{00000000-0000-0000-0000-000000000000,null}'],
  'timestamp with time zone': [null, '-infinity', 'infinity', '4714-11-24 00:00:00+00 BC'],
  interval: [null, '0', '-1 day', '170000 years', '-170000 years'],
};

/** Unusual values that have a documented meaning, and the state that they may change. */
const MEANINGS: [call: RegExp, changes: string[]][] = [
  // null: all keys.
  [/^masking\.rotate\((purpose|field) => null\)$/, ['keys', 'rotations']],
  // 0: no value may be lost. After a rotation, none is.
  [/^masking\.destroy_key\(losing => 0\)$/, ['keys']],
  // null: forever.
  [/^masking\.set_retention\(keep_months => null\)$/, ['retention']],
  // An unknown user, or a long reason.
  [/^masking\.erase_user\((user_id|reason) => x+\)$/, ['erasures']],
  [/^masking\.erase_user\(user_id => {2}\)$/, ['erasures']],
];

/** Queries for the state that must not change, by name. */
const PROTECTED_STATE: Record<string, string> = {
  keys: `select purpose, version, state from masking.keys`,
  kek: `select count(*) from masking.kek`,
  vault: `select token, key_version from masking.vault`,
  retokened: `select * from masking.retokened`,
  logins: `select user_id, create_date, message_id, masked_ip, masked_device_id from public.user_logins`,
  quarantine: `select message_id from staging.quarantine`,
  staged: `select batch_id, message_id from staging.raw_messages`,
  batches: `select batch_id, rows, masked_at, acked_at, lost_at from staging.batches`,
  rotations: `select rotation_id, state, phase, position_token, position_message_id from masking.rotations`,
  erasures: `select erasure_id, phase, logins_cleared, position_message_id from masking.erasures`,
  retention: `select keep_months, purge_position from masking.retention_policy`,
  approvals: `select request_id, approved_by from unmask.approvals`,
  policy: `select * from unmask.policy`,
};

interface Parameter {
  role: string;
  name: string;
  parameter: string;
  type: string;
  parameters: string[];
  types: string[];
}

let db: TestDatabase;
/** A valid value for each parameter, by name. It is cast to the parameter's type. */
let valid: Record<string, string>;
beforeAll(async () => {
  db = await createTestDatabase();
  const query = async (login: StackLogin, sql: string): Promise<string> =>
    String(Object.values((await db.pool(login).query(sql)).rows[0] ?? {})[0]);
  await load(db, sharedLogins(40));
  const broken = [message('no JSON'), message('{')];
  await maskAll(db, broken);
  const staged = await stage(db, [message(), message()]);
  const token = await query(
    'analyst',
    'select masked_ip from public.user_logins where masked_ip is not null',
  );
  const request = await query('unmasker', `select unmask.request('ip', array['${token}']::uuid[], 'INC-1')`);
  await query('custodian', `select masking.set_retention(24)`);
  valid = {
    batch_id: staged,
    row_count: '2',
    message_ids: `{${broken[0]!.id}}`,
    tokens: `{${token}}`,
    request_id: request,
    purpose: 'cipher',
    field: 'device_id',
    version: '1',
    losing: '0',
    max_rows: '500',
    keep_months: '24',
    months_ahead: '2',
    user_id: 'user-1',
    value: '10.0.0.1',
    reason: 'INC-1',
    worker_id: 'worker-1',
    keep: '30 days',
    overdue: '30 seconds',
    filled_until: '2026-01-15 12:00:00+00',
    known_event_id: '1',
    known_hash: 'none',
  };
});
afterAll(() => db.drop());

/** One row for each parameter of a function and each role that may call it. */
async function parametersOf(): Promise<Parameter[]> {
  const { rows } = await db.superuser.query<Parameter>(
    `select r.role, n.nspname || '.' || p.proname as name, a.parameter, a.type, s.parameters, s.types
       from pg_proc p
       join pg_namespace n on n.oid = p.pronamespace
      cross join unnest($1::text[]) r (role)
      cross join lateral (
        select array_agg(p.proargnames[t.n] order by t.n), array_agg(format_type(t.oid, null) order by t.n)
          from unnest(p.proargtypes::oid[]) with ordinality t (oid, n)
      ) s (parameters, types)
      cross join unnest(s.parameters, s.types) a (parameter, type)
      where n.nspname in ('masking', 'staging', 'unmask', 'audit')
        and has_schema_privilege(r.role, n.oid, 'usage')
        and has_function_privilege(r.role, p.oid, 'execute')
      order by 2, 3, 1`,
    [ROLES.filter((role) => role !== 'logins_owner')],
  );
  return rows;
}

/** Calls a function and rolls back. Returns what is wrong with the outcome, or undefined. */
async function outcomeOf(each: Parameter, odd: string | null): Promise<string | undefined> {
  const call = `${each.name}(${each.parameter} => ${odd})`;
  const values = each.parameters.map((name) => (name === each.parameter ? odd : valid[name]!));
  const list = each.parameters.map((name, n) => `${name} => $${n + 1}::${each.types[n]}`).join(', ');
  const client = await db.superuser.connect();
  try {
    await client.query('begin');
    const before = await stateOf(client);
    await client.query(
      `set local session authorization ${loginName(each.role.replace('logins_', '') as 'worker')}`,
    );
    await client.query(`set local statement_timeout = '60s'`);
    await client.query(`select * from ${each.name}(${list})`, values);
    await client.query('reset session authorization');
    const after = await stateOf(client);
    const changed = Object.keys(PROTECTED_STATE).filter((name) => before[name] !== after[name]);
    const meant = MEANINGS.find(([pattern]) => pattern.test(call))?.[1] ?? [];
    const wrong = changed.filter((name) => !meant.includes(name));
    return wrong.length === 0
      ? undefined
      : `${call.slice(0, 90)} by ${each.role} changed ${wrong.join(', ')}`;
  } catch (error) {
    const { code } = error as { code?: string };
    if (code === undefined) throw error;
    return REFUSALS.test(code) ? undefined : `${call.slice(0, 90)} by ${each.role} failed with ${code}`;
  } finally {
    await client.query('rollback');
    client.release();
  }
}

async function stateOf(client: {
  query: TestDatabase['superuser']['query'];
}): Promise<Record<string, string>> {
  const columns = Object.entries(PROTECTED_STATE).map(
    ([name, query]) => `(select md5(coalesce(string_agg(q::text, ',' order by q::text), '')) from (${query}) q) as "${name}"`,
  ); // prettier-ignore
  const { rows } = await client.query(`select ${columns.join(', ')}`);
  return rows[0];
}

async function faults(): Promise<string[]> {
  const found: string[] = [];
  for (const each of await parametersOf()) {
    for (const odd of ODD[each.type]!) {
      const fault = await outcomeOf(each, odd);
      if (fault !== undefined) found.push(fault);
    }
  }
  return found;
}

test('every parameter has a valid value, and every type has unusual values', async () => {
  const parameters = await parametersOf();
  expect(parameters.length).toBeGreaterThan(30);
  expect(
    parameters.filter(({ parameter }) => !(parameter in valid)).map(({ parameter }) => parameter),
  ).toEqual([]);
  expect(parameters.filter(({ type }) => !(type in ODD)).map(({ type }) => type)).toEqual([]);
});

test('a call with valid values is not refused, and its change is detected', async () => {
  const names = new Set((await parametersOf()).map(({ name }) => name));
  expect(names).toContain('masking.rotate_step');
  expect(names).toContain('unmask.request');
  const mine = (await parametersOf()).find(({ name }) => name === 'masking.set_retention')!;
  expect(await outcomeOf(mine, '7')).toMatch(/changed retention$/);
});

test('unusual arguments change nothing while no rotation or erasure runs', async () => {
  expect(await faults()).toEqual([]);
});

test('unusual arguments change nothing at the start of rotations, an erasure and a purge', async () => {
  await rotate(db, 'token', 'ip');
  await rotate(db, 'cipher', 'ip');
  await rotate(db, 'cipher', 'body');
  await db.pool('custodian').query(`select masking.erase_user('user-1', 'DSR-1')`);
  await db.superuser.query(
    `update masking.retention_policy set purge_position = '00000000-0000-0000-0000-000000000000'`,
  );
  expect(await faults()).toEqual([]);
});

test('unusual arguments change nothing during a rotation of logins and an erasure', async () => {
  while ((await rotationsOf(db))[0]!.phase === 'vault') await step(db, 9);
  await step(db, 9);
  await db.pool('worker').query('select masking.erase_step()');
  await db.pool('worker').query('select masking.erase_step()');
  expect(await faults()).toEqual([]);
});

test('unusual arguments change nothing after the rotations, while keys are retiring', async () => {
  await finish(db);
  expect(await faults()).toEqual([]);
});
