import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as graphileMigrate from 'graphile-migrate';
import * as graphileWorker from 'graphile-worker';
import pg from 'pg';
import { codeOf, FatalError } from '../errors.ts';
import type { Logger } from '../log.ts';
import { checkServer } from './check.ts';
import { libraryLogger } from './library-logger.ts';
import { createPool } from './pool.ts';
import { pinSession, SESSION_SETTINGS } from './session.ts';

const MIGRATIONS = path.join(import.meta.dirname, '../../migrations');

/** Any number will do that nobody else uses: it makes a second `migrate` wait for the first. */
const MIGRATE_LOCK = 7_233_916_401;

/**
 * graphile-migrate keeps its connections for 200 ms after it is done, and ends the whole process when one of them
 * breaks meanwhile: whoever stops Postgres right after a migration must not be ended by that. In milliseconds.
 */
const LINGER_MS = 300;

/**
 * Brings a database up to date: roles, schemas and extension, graphile-worker's schema, the committed migrations,
 * the partitions of the coming months. May be run at any time, and by two at once: the second waits.
 *
 * @param options.connectionString a superuser, or a role with CREATEROLE and CREATE on the database
 * @throws {FatalError} saying what is in the way and what to do
 */
export async function migrate(options: { connectionString: string; log: Logger }): Promise<void> {
  const { connectionString, log } = options;
  await prepared(connectionString, log, async (client) => {
    await graphileMigrate.migrate(await migrateSettings(asRole(connectionString, 'logins_owner'), log));
    await client.query('set role logins_owner');
    await client.query('select staging.maintain_partitions()');
  });
}

/**
 * Makes what the migrations stand on (roles, schemas, extension, graphile-worker's schema) and then calls back.
 *
 * @param then is called with a connection of the migrating login; nobody else migrates meanwhile
 * @throws {FatalError} saying what is in the way and what to do
 */
export async function prepared(
  connectionString: string,
  log: Logger,
  then: (client: pg.Client) => Promise<void>,
): Promise<void> {
  const client = new pg.Client({ connectionString, application_name: 'masked-logins migrate' });
  await client.connect();
  try {
    await pinSession(client);
    await checkServer(client);
    await client.query('select pg_advisory_lock($1)', [MIGRATE_LOCK]);
    await client.query('set client_min_messages = warning');
    await client.query(await readFile(path.join(MIGRATIONS, 'roles.sql'), 'utf8'));
    await client.query(await readFile(path.join(MIGRATIONS, 'database.sql'), 'utf8'));
    await migrateGraphileWorker(asRole(connectionString, 'logins_owner'), log);
    await then(client);
  } catch (error) {
    throw explained(error);
  } finally {
    await client.end();
    await sleep(LINGER_MS);
  }
}

/**
 * graphile-migrate's settings: those of `.gmrc`, with a connection and our logger.
 *
 * @param connectionString whose role owns what the migrations make
 */
export async function migrateSettings(
  connectionString: string,
  log: Logger,
): Promise<graphileMigrate.Settings> {
  const gmrc = await readFile(path.join(MIGRATIONS, '../.gmrc'), 'utf8');
  return {
    ...(JSON.parse(gmrc.replace(/^\s*\/\/.*$/gm, '')) as graphileMigrate.Settings),
    // Set for the session before its transactions begin.
    pgSettings: { ...SESSION_SETTINGS },
    connectionString,
    migrationsFolder: MIGRATIONS,
    logger: libraryLogger(graphileMigrate.Logger, log),
  };
}

/** A connection string that acts as a role, so that what it makes belongs to that role. */
export function asRole(connectionString: string, role: string): string {
  const url = new URL(connectionString);
  url.searchParams.set('options', `-c role=${role} -c client_min_messages=warning`);
  return url.toString();
}

async function migrateGraphileWorker(connectionString: string, log: Logger): Promise<void> {
  const pool = createPool(connectionString, { max: 2, applicationName: 'masked-logins migrate' });
  try {
    await graphileWorker.runMigrations({ pgPool: pool, logger: libraryLogger(graphileWorker.Logger, log) });
    await pool.query(await readFile(path.join(MIGRATIONS, 'graphile_worker.sql'), 'utf8'));
  } finally {
    await pool.end();
  }
}

/** Errors while migrating are about definitions, so their message and hint may be shown; `detail` may hold a row. */
function explained(error: unknown): unknown {
  if (!(error instanceof pg.DatabaseError)) return error;
  const hint = error.hint === undefined ? '' : ` (${error.hint})`;
  return new FatalError(
    `the database could not be migrated: ${error.message}${hint} [SQLSTATE ${codeOf(error)}]`,
  );
}
