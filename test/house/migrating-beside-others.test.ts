/** Migrating while other sessions hold its locks, and with options in the connection string. */
import pg from 'pg';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { GRAPHILE_MIGRATE_LOCK, lockMigrations, MIGRATE_LOCK } from '../../src/database/migrate-lock.ts';
import { migrate } from '../../src/database/migrate.ts';
import { FatalError } from '../../src/errors.ts';
import { createLogger } from '../../src/log.ts';
import { createFreshDatabase, type FreshDatabase } from '../support/fresh-database.ts';
import { markLog } from '../support/server-log.ts';

const log = createLogger('silent');
let database: FreshDatabase;
beforeEach(async () => {
  database = await createFreshDatabase();
});
afterEach(() => database.drop());

describe('the migration lock', () => {
  test.each([
    ['of masked-logins', MIGRATE_LOCK],
    ['of graphile-migrate', GRAPHILE_MIGRATE_LOCK],
  ])('%s: if another session holds it, migrating fails and names its pid and login', async (_, lock) => {
    const holder = await database.superuser.connect();
    const { rows } = await holder.query('select pg_advisory_lock($1::bigint), pg_backend_pid() as pid', [
      lock,
    ]);
    const migration = migrate({ connectionString: database.migratorUrl, log, lockWaitMs: 200 });
    await expect(migration).rejects.toThrow(FatalError);
    await expect(migration).rejects.toThrow(new RegExp(`pid ${rows[0].pid}, login postgres`));
    holder.release(true);
    await migrate({ connectionString: database.migratorUrl, log });
  });

  test('is released when the transaction ends', async () => {
    const client = new pg.Client({ connectionString: database.migratorUrl });
    await client.connect();
    await lockMigrations(client, 1_000, log);
    await client.query('rollback');
    const { rows } = await client.query(
      `select from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()`,
    );
    expect(rows).toEqual([]);
    await client.end();
  });
});

test('the options of the connection string apply while migrating', async () => {
  const url = `${database.migratorUrl}?options=-c%20statement_timeout%3D55s%20-c%20myapp.tenant%3Dt1&application_name=mine`;
  await database.superuser.query(
    `create function public.note() returns event_trigger language plpgsql as $$
       begin raise log 'tenant %, %', current_setting('myapp.tenant', true), current_setting('application_name'); end $$;
     create event trigger note on ddl_command_end when tag in ('CREATE FUNCTION') execute function public.note()`,
  );
  const mark = markLog();
  await migrate({ connectionString: url, log });
  const logged = [
    ...mark
      .since()
      .toString()
      .matchAll(/tenant (\S*), (\S*)$/gm),
  ].map(([, tenant, name]) => `${tenant} ${name}`);
  // The functions of graphile-worker and of the committed migrations.
  expect(logged.length).toBeGreaterThan(50);
  expect([...new Set(logged)]).toEqual(['t1 mine']);
});
