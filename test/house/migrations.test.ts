import { createHash } from 'node:crypto';
import path from 'node:path';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { faultOfVersion } from '../../src/database/check.ts';
import { migrate, withPreparedDatabase } from '../../src/database/migrate.ts';
import { FatalError } from '../../src/errors.ts';
import { createLogger } from '../../src/log.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { createFreshDatabase, type FreshDatabase } from '../support/fresh-database.ts';
import { failure } from '../support/sqlstate.ts';
import { definitionsOf } from './definitions.ts';
import { filesOf, read } from './files.ts';

const log = createLogger('silent');
const databases: FreshDatabase[] = [];
afterEach(async () => {
  await Promise.all(databases.splice(0).map((each) => each.drop()));
});

async function fresh(): Promise<FreshDatabase> {
  const database = await createFreshDatabase();
  databases.push(database);
  return database;
}

async function migrated(): Promise<FreshDatabase> {
  const database = await fresh();
  await migrate({ connectionString: database.migratorUrl, log });
  return database;
}

/** The statement that the error with this SQLSTATE suggests, with the login's name in place of MIGRATOR. */
async function remedyOf(code: string, connectionString: string): Promise<string> {
  const message = await migrate({ connectionString, log }).then(
    () => 'not refused',
    (error: Error) => error.message,
  );
  expect(message).toContain(code);
  const login = decodeURIComponent(new URL(connectionString).username);
  return /`([^`]+)`/.exec(message)![1]!.replace('MIGRATOR', login);
}

async function expectMigrated(connectionString: string): Promise<void> {
  await expect(migrate({ connectionString, log })).resolves.toBeUndefined();
}

/** The fixtures as one text: `all.sql`, with each `include` line replaced by the file. */
function fixtures(): string {
  return read('migrations/fixtures/all.sql').replaceAll(/^--! include (\S+)$/gm, (_, name: string) =>
    read(path.join('migrations/fixtures', name)),
  );
}

test('a database created by the migrations equals a database created from the fixtures', async () => {
  const [byMigrations, byFixtures] = [await migrated(), await fresh()];
  await withPreparedDatabase({ connectionString: byFixtures.migratorUrl, log }, async (client) => {
    await client.query('set role logins_owner');
    await client.query('set search_path = pg_catalog, pg_temp');
    await client.query(fixtures());
  });
  const expected = await definitionsOf(byFixtures.superuser);
  expect(Object.keys(expected).length).toBeGreaterThan(150);
  expect(await definitionsOf(byMigrations.superuser)).toEqual(expected);
});

describe('the comparison detects', () => {
  let db: TestDatabase;
  beforeAll(async () => {
    db = await createTestDatabase();
  });
  afterAll(() => db.drop());

  test.each([
    'alter table masking.vault alter column ciphertext set statistics 5',
    'alter table masking.vault alter column ciphertext set storage extended',
    'alter table masking.vault disable row level security',
    'alter table staging.raw_messages set (autovacuum_vacuum_threshold = 7)',
    'alter function masking.unwrapped(bytea) immutable',
    `comment on column staging.batches.rows is 'other'`,
    'grant select (token) on masking.vault to logins_analyst',
    'drop index masking.keys_one_active',
    'alter table staging.quarantine alter column quarantined_at drop default',
    'alter table masking.keys drop constraint keys_state_check',
    'drop trigger receive_kek on masking.kek_inbox',
    'alter view public.user_logins_compat reset (security_barrier)',
  ])('%s', async (change) => {
    const client = await db.superuser.connect();
    try {
      const before = await definitionsOf(client);
      await client.query(`begin; ${change}`);
      expect(await definitionsOf(client)).not.toEqual(before);
    } finally {
      client.release(true);
    }
  });
});

test('two migrations at the same time succeed, and a third changes nothing', async () => {
  const database = await fresh();
  const run = () => migrate({ connectionString: database.migratorUrl, log });
  await Promise.all([run(), run()]);
  const first = await definitionsOf(database.superuser);
  await run();
  expect(await definitionsOf(database.superuser)).toEqual(first);
  const { rows } = await database.superuser.query(
    'select count(*)::int as n from graphile_migrate.migrations',
  );
  expect(rows).toEqual([{ n: filesOf('migrations/committed', '.sql').length }]);
});

test('settings that change the meaning of SQL do not change the result of migrating', async () => {
  const [expected, changed] = [await migrated(), await fresh()];
  const { rows } = await changed.superuser.query<{ name: string }>('select current_database() as name');
  const name = rows[0]!.name;
  const settings = [
    'standard_conforming_strings = off',
    'backslash_quote = off',
    `search_path = 'hostile, pg_catalog'`,
    'quote_all_identifiers = on',
    'array_nulls = off',
    'transform_null_equals = on',
    'row_security = off',
    `restrict_nonsystem_relation_kind = 'view, foreign-table'`,
    `datestyle = 'German, DMY'`,
    'intervalstyle = iso_8601',
    `timezone = 'Pacific/Apia'`,
    'bytea_output = escape',
    'xmlbinary = hex',
    'extra_float_digits = -15',
    'default_transaction_isolation = serializable',
    'default_transaction_read_only = on',
    'default_transaction_deferrable = on',
    `plpgsql.extra_errors = 'all'`,
    `createrole_self_grant = ''`,
  ];
  await changed.superuser.query(
    [`load 'plpgsql'`, ...settings.map((each) => `alter database ${name} set ${each}`)].join('; '),
  );
  await migrate({ connectionString: changed.migratorUrl, log });
  await migrate({ connectionString: changed.migratorUrl, log });
  await changed.superuser.query(`set default_transaction_read_only = off; alter database ${name} reset all`);
  expect(await definitionsOf(changed.superuser)).toEqual(await definitionsOf(expected.superuser));
});

test('the migrating login owns nothing after migrating', async () => {
  const { superuser } = await migrated();
  const { rows } = await superuser.query(
    `select c.relname from pg_class c where c.relowner = 'local_owner'::regrole
     union all select p.proname from pg_proc p where p.proowner = 'local_owner'::regrole and p.probin is null
     union all select n.nspname from pg_namespace n where n.nspowner = 'local_owner'::regrole`,
  );
  expect(rows).toEqual([]);
});

test('migrating without the right to create in schema public is refused with ML021', async () => {
  const database = await fresh();
  await database.superuser.query('revoke create on schema public from local_owner cascade');
  const migration = migrate({ connectionString: database.migratorUrl, log });
  await expect(migration).rejects.toThrow(FatalError);
  await expect(migration).rejects.toThrow(/ML021/);
});

test('pgcrypto in another schema is refused, and running the suggested statement fixes it', async () => {
  const database = await fresh();
  await database.superuser.query('create schema extensions; create extension pgcrypto schema extensions');
  await database.superuser.query(await remedyOf('ML020', database.migratorUrl));
  await expectMigrated(database.migratorUrl);
});

test('a schema crypto with another owner is refused, and running the suggested statement fixes it', async () => {
  const database = await fresh();
  await database.superuser.query('create schema crypto; create extension pgcrypto schema crypto');
  await database.superuser.query(await remedyOf('ML020', database.migratorUrl));
  await expectMigrated(database.migratorUrl);
});

describe('migrating a second database of the cluster with another login', () => {
  let second: FreshDatabase;
  let url: string;
  beforeEach(async () => {
    second = await fresh();
    const { superuser, name, migratorUrl } = second;
    await superuser.query(`create role second_migrator login createrole password 'second'`);
    await superuser.query(`grant create on database ${name} to second_migrator`);
    await superuser.query('grant create on schema public to second_migrator with grant option');
    url = migratorUrl.replace(/\/\/[^@]*@/, '//second_migrator:second@');
  });
  afterEach(async () => {
    await second.superuser.query('drop owned by second_migrator');
    await second.superuser.query('drop role second_migrator');
  });

  test.each(['a superuser', 'the login that migrated the first database'])(
    'is refused, and the suggested grant fixes it when %s runs it',
    async (who) => {
      const remedy = await remedyOf('ML023', url);
      if (who === 'a superuser') {
        await second.superuser.query(remedy);
      } else {
        const first = new pg.Client({ connectionString: second.migratorUrl });
        await first.connect();
        await first.query(remedy);
        await first.end();
      }
      await expectMigrated(url);
      await expectMigrated(second.migratorUrl);
    },
  );

  test('is refused if a role is missing and the login may not create roles', async () => {
    const client = await second.superuser.connect();
    await client.query('begin');
    await client.query('alter role logins_auditor rename to elsewhere');
    await client.query('alter role second_migrator nocreaterole');
    await client.query('set local session authorization second_migrator');
    const refused = await failure(client.query(read('migrations/before/1-roles.sql')));
    // All of this was in one transaction, so other tests did not see that a role was missing.
    client.release(true);
    expect(refused).toMatchObject({
      code: 'ML022',
      hint: expect.stringContaining('`alter role MIGRATOR createrole`'),
    });
  });
});

test('a database whose encoding is not UTF8 is refused before anything is created in it', async () => {
  const database = await createFreshDatabase("encoding 'SQL_ASCII'");
  databases.push(database);
  await expect(migrate({ connectionString: database.migratorUrl, log })).rejects.toThrow(/SQL_ASCII.*UTF8/);
  const { rows } = await database.superuser.query(
    `select nspname from pg_namespace where nspname !~ '^pg_' and nspname not in ('public', 'information_schema')`,
  );
  expect(rows).toEqual([]);
});

test('each committed migration matches its hash and names the hash of the migration before it', () => {
  let previous = '-';
  for (const { name, text } of filesOf('migrations/committed', '.sql')) {
    const [, before, hash] = /^--! Previous: (\S+)\n--! Hash: (\S+)\n/.exec(text)!;
    const body = text.slice(text.indexOf('\n\n') + 2);
    const hashed = `${previous === '-' ? '' : previous}\n${body.trim()}`.trim();
    const actual = `sha1:${createHash('sha1').update(`${hashed}\n`).digest('hex')}`;
    expect({ name, before, hash }).toEqual({ name, before: previous, hash: actual });
    previous = hash!;
  }
  expect(previous).toMatch(/^sha1:/);
});

test.each([150_000, 150_099, 160_011, 170_007, 180_001, 180_000])(
  'server version %i is refused',
  (version) => {
    expect(faultOfVersion(version)).toBeDefined();
  },
);

test.each([160_012, 170_008, 180_002, 190_000])('server version %i is accepted', (version) => {
  expect(faultOfVersion(version)).toBeUndefined();
});
