import { readFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { factsOf, ROLES, type About } from './catalogs.ts';

const EXPECTED = readFileSync(path.join(import.meta.dirname, 'privileges.expected.txt'), 'utf8');

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

function expectedOf(about: About): string[] {
  const section = EXPECTED.split(/^# /m).find((each) => each.startsWith(`${about}\n`));
  return section!.trim().split('\n').slice(1);
}

async function rowsOf(query: string, values: unknown[] = []): Promise<unknown[]> {
  return (await db.superuser.query(query, values)).rows;
}

test.each([
  ['every schema, table, view, sequence and function has the owner in the list', 'owners'],
  ['the grants, including those to PUBLIC, are exactly those in the list', 'grants'],
  ['every table has the row-level security and the policies in the list', 'policies'],
  ['the memberships of roles are exactly those in the list', 'memberships'],
  ['what each role can do is exactly what is in the list', 'abilities'],
] as const)('%s', async (_, about) => {
  expect(await factsOf(db.superuser, about)).toEqual(expectedOf(about));
});

test.each([
  'grant select on masking.vault to logins_analyst',
  'grant select (token) on masking.vault to logins_auditor',
  'grant usage on schema crypto to logins_custodian',
  'grant execute on function masking.unwrapped(bytea) to public',
  'alter default privileges in schema staging grant select on tables to logins_worker',
  'grant update on sequence graphile_worker.tasks_id_seq to logins_loader',
  'create table public.stray (); grant insert on public.stray to public',
  'revoke usage on schema public from public',
])('the list of grants detects: %s', async (change) => {
  const client = await db.superuser.connect();
  await client.query(`begin; ${change}`);
  const facts = await factsOf(client, 'grants');
  await client.query('rollback');
  client.release();
  expect(facts).not.toEqual(expectedOf('grants'));
});

test.each([
  'alter table audit.events disable row level security',
  'alter table public.user_logins_default disable row level security',
  'alter table graphile_migrate.migrations disable row level security',
  'create table staging.stray ()',
  'create policy stray on masking.kek using (true)',
  'create policy stray on unmask.policy for update to logins_unmasker using (true)',
  'alter policy logins_auditor on audit.events to public',
])('the list of policies detects: %s', async (change) => {
  const client = await db.superuser.connect();
  await client.query(`begin; ${change}`);
  const facts = await factsOf(client, 'policies');
  await client.query('rollback');
  client.release();
  expect(facts).not.toEqual(expectedOf('policies'));
});

test('the roles cannot log in and have no cluster-wide attributes', async () => {
  const roles = await rowsOf(
    `select rolname as role from pg_roles
      where rolname = any ($1) and not (rolcanlogin or rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolreplication)
      order by array_position($1, rolname::text)`,
    [ROLES],
  );
  expect(roles).toEqual(ROLES.map((role) => ({ role })));
});

test('no other role has a name that begins with logins_', async () => {
  const roles = await rowsOf(
    `select rolname from pg_roles where rolname ~ '^logins_' and rolname <> all ($1)`,
    [ROLES],
  );
  expect(roles).toEqual([]);
});

test("the roles have no privileges outside the project's schemas", async () => {
  const strays = await rowsOf(
    `select d.refobjid::regrole::text as role, d.classid::regclass::text as catalog, d.objid, d.deptype
       from pg_shdepend d
      where d.refclassid = 'pg_authid'::regclass and d.refobjid::regrole::text = any ($1)
        and d.dbid = (select oid from pg_database where datname = current_database())
        and d.classid not in ('pg_namespace'::regclass, 'pg_class'::regclass, 'pg_proc'::regclass, 'pg_default_acl'::regclass)
        and not (d.classid = 'pg_type'::regclass and d.deptype = 'o')
        -- The list of policies covers these.
        and d.classid <> 'pg_policy'::regclass`,
    [ROLES],
  );
  expect(strays).toEqual([]);
  expect(await rowsOf('select * from pg_parameter_acl')).toEqual([]);
});

test('no role has CREATE on the database', async () => {
  const roles = await rowsOf(
    `select r.role from unnest($1::text[]) r (role) where has_database_privilege(r.role, current_database(), 'create')`,
    [ROLES],
  );
  expect(roles).toEqual([]);
});

describe('every function of masked-logins', () => {
  const OURS = `from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname in ('public', 'staging', 'masking', 'unmask', 'audit')`;

  test('is found by the query that these tests use', async () => {
    expect((await rowsOf(`select p.proname ${OURS}`)).length).toBeGreaterThan(25);
  });

  test.each([
    ['is owned by logins_owner', `p.proowner <> 'logins_owner'::regrole`],
    ['cannot be called by PUBLIC', `has_function_privilege('public', p.oid, 'execute')`],
    [
      'has a safe search_path if it is SECURITY DEFINER',
      `p.prosecdef and not coalesce(p.proconfig && array['search_path=pg_catalog, pg_temp', 'search_path=""'], false)`,
    ],
    [
      'has a safe search_path if it is in PL/pgSQL',
      `p.prolang = (select oid from pg_language where lanname = 'plpgsql')
       and not coalesce(p.proconfig && array['search_path=pg_catalog, pg_temp', 'search_path=""'], false)`,
    ],
    [
      'is not overloaded',
      `(select count(*) from pg_proc o where (o.proname, o.pronamespace) = (p.proname, p.pronamespace)) > 1`,
    ],
    ['has a comment', `obj_description(p.oid, 'pg_proc') is null`],
    [
      'is not immutable if it reads tables, because EXPLAIN would show a key as a constant',
      `p.provolatile = 'i' and p.prosrc ~ '(masking|staging|public)\\.\\w+ '`,
    ],
  ])('%s', async (_, fault) => {
    expect(await rowsOf(`select p.proname ${OURS} and (${fault})`)).toEqual([]);
  });
});

/** staging.raw_messages and its slots. */
const STAGED = ['', '_0', '_1', '_2'].map((slot) => `staging.raw_messages${slot}`);

describe('tables', () => {
  const OURS = `from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname in ('public', 'staging', 'masking', 'unmask', 'audit') and c.relkind in ('r', 'p', 'v', 'm')`;

  test('have a comment unless they are partitions', async () => {
    const without = `select c.relname ${OURS} and not c.relispartition and obj_description(c.oid, 'pg_class') is null`;
    expect(await rowsOf(without)).toEqual([]);
  });

  test('with secrets have no policy, so that only their owner sees rows', async () => {
    const open = `select distinct c.oid::regclass::text as name ${OURS.replace('where', 'join pg_policy p on p.polrelid = c.oid where')}`;
    const names = (await rowsOf(open)).map((row) => (row as { name: string }).name);
    expect(names.length).toBeGreaterThan(5);
    for (const secret of [
      'audit.heads',
      'masking.kek',
      'masking.kek_history',
      'masking.keys',
      'masking.vault',
      'masking.retokened',
      'staging.quarantine',
      ...STAGED,
    ]) {
      expect(names).not.toContain(secret);
    }
  });

  test('the tables with values or keys in the clear are unlogged, and no others', async () => {
    const unlogged = `select n.nspname || '.' || c.relname as name ${OURS} and c.relpersistence <> 'p' order by 1`;
    expect(await rowsOf(unlogged)).toEqual(['masking.kek', ...STAGED].map((name) => ({ name })));
  });

  test('have no statistics on columns with content, because statistics are logged', async () => {
    const columns = `select n.nspname || '.' || c.relname || '.' || a.attname as name
      ${OURS.replace('where', `join pg_attribute a on a.attrelid = c.oid where a.attnum > 0 and a.attstattarget = 0 and`)}
      order by 1`;
    expect(await rowsOf(columns)).toEqual(
      [
        'masking.kek.kek',
        'masking.keys.wrapped',
        'masking.vault.ciphertext',
        'staging.quarantine.body',
        ...STAGED.flatMap((table) => [
          `${table}.body`,
          `${table}.body_key`,
          `${table}.message_id`,
          `${table}.receipt_handle`,
        ]),
      ].map((name) => ({ name })),
    );
    expect(await rowsOf('select stxname from pg_statistic_ext')).toEqual([]);
  });

  test('that are views of masked data are security barriers', async () => {
    const open = `select c.relname ${OURS} and c.relkind = 'v' and n.nspname = 'public'
      and not coalesce('security_barrier=true' = any (c.reloptions), false)`;
    expect(await rowsOf(open)).toEqual([]);
  });
});
