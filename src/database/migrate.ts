import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as graphileMigrate from 'graphile-migrate';
import * as graphileWorker from 'graphile-worker';
import type pg from 'pg';
import { explained, FatalError } from '../errors.ts';
import type { Logger } from '../log.ts';
import { packageFile } from '../package.ts';
import { checkServer } from './check.ts';
import { createClient } from './client.ts';
import { migrationFault } from './faults.ts';
import { libraryLogger } from './library-logger.ts';
import { GRAPHILE_MIGRATE_LOCK, heldFor, lockMigrations } from './migrate-lock.ts';
import { createPool } from './pool.ts';
import { refuseTransactionPooler } from './pooler.ts';
import { pinSession, SESSION_SETTINGS } from './session.ts';
import { databaseAt } from './url.ts';

const MIGRATIONS = packageFile('migrations');
const APPLICATION = 'masked-logins migrate';

/** How long to wait for another migration, in milliseconds. */
const LOCK_WAIT_MS = 60_000;

/**
 * graphile-migrate keeps its connections open for 200 ms after it is done. If one of them breaks in this time, for
 * example because Postgres is stopped, it ends the whole process. So wait for longer than that; in milliseconds.
 */
const LINGER_MS = 300;

export interface MigrateOptions {
  /** A superuser, or a role with CREATEROLE and CREATE on the database. */
  connectionString: string;
  log: Logger;
  /** How long to wait for another migration, in milliseconds. */
  lockWaitMs?: number;
}

/**
 * Updates a database: roles, schemas and extension, graphile-worker's schema, the committed migrations, the
 * partitions of the next months. It can be run at any time. A second one waits for the first.
 *
 * @throws {FatalError} that says what is wrong and what to do
 */
export async function migrate(options: MigrateOptions): Promise<void> {
  await withPreparedDatabase(options, async (client, connectionString) => {
    const settings = await migrateSettings(connectionString, options.log);
    await graphileMigrate
      .migrate({ ...settings, pgSettings: { ...settings.pgSettings, role: 'logins_owner' } })
      .catch(async (error: unknown) => {
        // The error has no code. This is graphile-migrate's own text.
        const isHeld = error instanceof Error && error.message === 'Failed to get exclusive lock';
        throw isHeld ? new FatalError(await heldFor(client, GRAPHILE_MIGRATE_LOCK)) : error;
      });
    await client.query('set role logins_owner');
    await client.query('select staging.maintain_partitions()');
  });
}

/**
 * Creates what the migrations need (roles, schemas, extension, graphile-worker's schema), then calls `then`.
 *
 * @param then called with a connection of the migrating login; no other process migrates meanwhile
 * @throws {FatalError} that says what is wrong and what to do
 */
export async function withPreparedDatabase(
  options: MigrateOptions,
  then: (client: pg.Client, connectionString: string) => Promise<void>,
): Promise<void> {
  const { log, lockWaitMs = LOCK_WAIT_MS } = options;
  const { url, display } = databaseAt(options.connectionString);
  const client = createClient(url, APPLICATION);
  const guard = createClient(url, APPLICATION);
  try {
    await client.connect();
    await guard.connect();
    await pinSession(client);
    await refuseTransactionPooler(client, guard, display);
    await checkServer(client);
    await checkLanguages(client);
    await lockMigrations(guard, lockWaitMs, log);
    await client.query('set client_min_messages = warning');
    await client.query(await scriptBefore('1-roles.sql'));
    await client.query(await scriptBefore('2-database.sql'));
    await migrateGraphileWorker(url, log);
    await then(client, url);
  } catch (error) {
    throw explained(error, migrationFault(error, display));
  } finally {
    await Promise.all([client.end(), guard.end()]);
    await sleep(LINGER_MS);
  }
}

/** The scripts are written in PL/pgSQL, so they cannot report that the login may not use it. */
async function checkLanguages(client: pg.Client): Promise<void> {
  const { rows } = await client.query<{ may: boolean }>(
    `select has_language_privilege('plpgsql', 'usage') and has_language_privilege('sql', 'usage') as may`,
  );
  if (rows[0]?.may === true) return;
  throw new FatalError(
    `the migrating login may not use the languages sql and plpgsql: have a superuser run, in this database, \`grant usage on language sql, plpgsql to MIGRATOR with grant option\`, where MIGRATOR is the login in DATABASE_URL`,
  );
}

/**
 * graphile-migrate's settings: those of `.gmrc`, with a connection and a logger.
 *
 * @param connectionString its role owns what the migrations create
 */
export async function migrateSettings(
  connectionString: string,
  log: Logger,
): Promise<graphileMigrate.Settings> {
  const text = await readFile(packageFile('.gmrc'), 'utf8');
  const gmrc = JSON.parse(text.replace(/^\s*\/\/.*$/gm, '')) as graphileMigrate.Settings;
  return {
    ...gmrc,
    connectionString,
    migrationsFolder: MIGRATIONS,
    // graphile-migrate sets these for the session, before its transactions.
    pgSettings: { ...SESSION_SETTINGS, ...gmrc.pgSettings, client_min_messages: 'warning' },
    logger: libraryLogger(graphileMigrate.Logger, log),
  };
}

async function migrateGraphileWorker(connectionString: string, log: Logger): Promise<void> {
  const pool = createPool(connectionString, {
    max: 2,
    applicationName: APPLICATION,
    role: 'logins_owner',
  });
  try {
    await graphileWorker.runMigrations({ pgPool: pool, logger: libraryLogger(graphileWorker.Logger, log) });
    await pool.query(await scriptBefore('3-graphile-worker.sql'));
  } finally {
    await pool.end();
  }
}

/** A script that runs before graphile-migrate. */
function scriptBefore(name: string): Promise<string> {
  return readFile(path.join(MIGRATIONS, 'before', name), 'utf8');
}
