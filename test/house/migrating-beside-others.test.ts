/** Migrating where others hold its locks, and with a connection string that says more than where to connect. */
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

describe('a lock that somebody else holds', () => {
  test.each([
    ['ours', MIGRATE_LOCK],
    ['graphile-migrate’s', GRAPHILE_MIGRATE_LOCK],
  ])('%s, ends the wait for it with the pid and the login of its holder', async (_, lock) => {
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

  test('ends with the connection of whoever migrates', async () => {
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

test('the options of a connection string stay the user’s while migrating', async () => {
  const url = `${database.migratorUrl}?options=-c%20statement_timeout%3D55s%20-c%20myapp.tenant%3Dt1&application_name=mine`;
  await database.superuser.query(
    `create function public.note() returns event_trigger language plpgsql as $$
       begin raise log 'tenant %, %', current_setting('myapp.tenant', true), current_setting('application_name'); end $$;
     create event trigger note on ddl_command_end when tag in ('CREATE FUNCTION') execute function public.note()`,
  );
  const mark = markLog();
  await migrate({ connectionString: url, log });
  const told = [
    ...mark
      .since()
      .toString()
      .matchAll(/tenant (\S*), (\S*)$/gm),
  ].map(([, tenant, name]) => `${tenant} ${name}`);
  // graphile-worker's functions and those of the committed migrations.
  expect(told.length).toBeGreaterThan(50);
  expect([...new Set(told)]).toEqual(['t1 mine']);
});
