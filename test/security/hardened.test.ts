import { randomUUID } from 'node:crypto';
import { afterEach, expect, test } from 'vitest';
import { unseal } from '../../src/database/kek.ts';
import { migrate } from '../../src/database/migrate.ts';
import { createLogger } from '../../src/log.ts';
import { databaseNamed, type TestDatabase } from '../support/database.ts';
import { createFreshDatabase, type FreshDatabase } from '../support/fresh-database.ts';
import { close, mask, message, stage } from '../support/staging.ts';

const log = createLogger('silent');
const MIGRATOR = 'local_owner';

let fresh: FreshDatabase;
let db: TestDatabase | undefined;
afterEach(async () => {
  await db?.drop();
  db = undefined;
  await fresh.drop();
});

/** Revokes the default privileges of PUBLIC in a database, on existing and future objects. */
async function revokePublicDefaults({ superuser, name }: FreshDatabase): Promise<void> {
  await superuser.query(`revoke all on database ${name} from public`);
  await superuser.query('revoke all on schema public from public');
  await superuser.query('revoke all on language sql, plpgsql from public');
  await superuser.query(`do $$
    declare
      schema_name name;
      type_name regtype;
    begin
      for schema_name in
        select nspname from pg_namespace where nspname in ('public', 'staging', 'masking', 'unmask', 'audit', 'graphile_worker')
      loop
        execute format('revoke all on all routines in schema %I from public', schema_name);
        execute format('revoke all on all tables in schema %I from public', schema_name);
        execute format('revoke all on all sequences in schema %I from public', schema_name);
      end loop;
      for type_name in
        select t.oid from pg_type t join pg_namespace n on n.oid = t.typnamespace
         where n.nspname in ('public', 'staging', 'masking', 'unmask', 'audit', 'graphile_worker')
           and t.typtype in ('c', 'd', 'e') and t.typrelid = 0
      loop
        execute format('revoke all on type %s from public', type_name);
      end loop;
    end
    $$`);
  for (const role of [MIGRATOR, 'logins_owner']) {
    await superuser.query(`alter default privileges for role ${role} revoke all on functions from public`);
    await superuser.query(`alter default privileges for role ${role} revoke all on types from public`);
  }
}

/** The grants that docs/operations.md lists for a hardened database. */
async function grantToMigrator({ superuser, name }: FreshDatabase): Promise<void> {
  await superuser.query(`grant create on database ${name} to ${MIGRATOR}`);
  await superuser.query(`grant connect on database ${name} to ${MIGRATOR} with grant option`);
  await superuser.query(`grant usage, create on schema public to ${MIGRATOR} with grant option`);
  await superuser.query(`grant usage on language sql, plpgsql to ${MIGRATOR} with grant option`);
}

/** The SQLSTATE of a migration that is refused, and the remedy that its message contains in backquotes. */
async function refusal(migration: Promise<void>): Promise<{ code: string | undefined; remedy: string }> {
  const text = await migration.then(
    () => 'no refusal',
    (error: Error) => error.message,
  );
  return {
    code: /ML\d{3}/.exec(text)?.[0],
    remedy: (/`([^`]+)`/.exec(text)?.[1] ?? text).replace('MIGRATOR', MIGRATOR),
  };
}

/** Loads, masks, reads, requests, approves and reveals a value, with maintenance and status in between. */
async function expectJourney(name: string): Promise<void> {
  db = databaseNamed(name);
  await unseal(db.pool('worker'), db.kek);
  const userId = randomUUID();
  const body = JSON.stringify({ user_id: userId, ip: '203.0.113.9', device_id: 'd-1' });
  const batchId = await stage(db, [message(body)]);
  await db.pool('worker').query(`select staging.heartbeat('w')`);
  const { rowCount: jobs } = await db.pool('worker').query('select from graphile_worker.jobs');
  expect(jobs).toBeGreaterThan(0);
  expect(await mask(db, batchId)).toHaveLength(1);
  await close(db, batchId);
  await db.pool('worker').query('select staging.recycle_slots()');
  await db.pool('worker').query('select staging.maintain_partitions()');

  for (const login of ['analyst', 'unmasker'] as const) {
    for (const relation of ['public.user_logins', 'public.user_logins_compat']) {
      const { rows } = await db.pool(login).query(`select user_id from ${relation}`);
      expect(rows).toEqual([{ user_id: userId }]);
    }
  }
  await db.superuser.query('update unmask.policy set approval_above = 0');
  const { rows: requests } = await db
    .pool('unmasker')
    .query(
      `select unmask.request('ip', array(select masked_ip from public.user_logins), reason => 'INC-1') as id`,
    );
  await db.pool('approver').query('select unmask.approve($1)', [requests[0].id]);
  const { rows: values } = await db
    .pool('unmasker')
    .query('select value from unmask.reveal($1)', [requests[0].id]);
  expect(values).toEqual([{ value: '203.0.113.9' }]);

  for (const login of ['worker', 'custodian', 'auditor'] as const)
    expect((await db.pool(login).query('select loaded from staging.status()')).rows).toEqual([
      { loaded: '1' },
    ]);
  for (const login of ['custodian', 'auditor'] as const)
    expect((await db.pool(login).query('select * from masking.list_keys()')).rowCount).toBe(5);
  expect((await db.pool('auditor').query('select * from audit.verify()')).rowCount).toBe(1);
}

test('a database without default privileges of PUBLIC can be migrated, and everything works', async () => {
  fresh = await createFreshDatabase();
  await revokePublicDefaults(fresh);
  await grantToMigrator(fresh);
  await migrate({ connectionString: fresh.migratorUrl, log });
  await expectJourney(fresh.name);
});

test('everything still works if PUBLIC loses its default privileges after a migration', async () => {
  fresh = await createFreshDatabase();
  await grantToMigrator(fresh);
  await migrate({ connectionString: fresh.migratorUrl, log });
  await revokePublicDefaults(fresh);
  await expectJourney(fresh.name);
  await migrate({ connectionString: fresh.migratorUrl, log });
});

test('each missing privilege of the migrating login is reported with the statement to grant it', async () => {
  fresh = await createFreshDatabase();
  await revokePublicDefaults(fresh);
  await fresh.superuser.query(`revoke all on database ${fresh.name} from ${MIGRATOR}`);
  await fresh.superuser.query(`revoke all on schema public from ${MIGRATOR}`);
  await fresh.superuser.query(`grant connect on database ${fresh.name} to ${MIGRATOR}`);
  const codes: (string | undefined)[] = [];
  for (;;) {
    const { code, remedy } = await refusal(migrate({ connectionString: fresh.migratorUrl, log }));
    if (remedy === 'no refusal') break;
    codes.push(code);
    await fresh.superuser.query(remedy);
    expect(codes.length).toBeLessThan(10);
  }
  // The languages, CREATE on the database, CONNECT on it, schema public.
  expect(codes).toEqual([undefined, 'ML024', 'ML024', 'ML021']);
  await expectJourney(fresh.name);
});

test('a missing privilege on pgcrypto functions is reported with the statement to grant it', async () => {
  fresh = await createFreshDatabase();
  await fresh.superuser.query('alter default privileges revoke all on functions from public');
  const { code, remedy } = await refusal(migrate({ connectionString: fresh.migratorUrl, log }));
  expect(code).toBe('ML025');
  await fresh.superuser.query('create schema if not exists crypto authorization logins_owner');
  await fresh.superuser.query('create extension if not exists pgcrypto schema crypto');
  await fresh.superuser.query(remedy);
  await migrate({ connectionString: fresh.migratorUrl, log });
  await expectJourney(fresh.name);
});
