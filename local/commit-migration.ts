import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import * as graphileMigrate from 'graphile-migrate';
import pg from 'pg';
import { migrateSettings, withPreparedDatabase } from '../src/database/migrate.ts';
import type { Logger } from '../src/log.ts';

const CURRENT = path.join(import.meta.dirname, '../../migrations/current.sql');

/**
 * Freezes `migrations/current.sql` as the next file of `migrations/committed/`, after trying it on two databases of
 * a scratch cluster. A failure leaves `current.sql` as it was: graphile-migrate alone would leave it expanded.
 *
 * @param options.superuserUrl a superuser of a scratch cluster
 * @param options.message what the migration does, in a few words: it becomes part of the file's name
 */
export async function commitMigration(options: {
  superuserUrl: string;
  message: string;
  log: Logger;
}): Promise<void> {
  const { superuserUrl, message, log } = options;
  const main = await createDatabase(superuserUrl, 'commit_main');
  const shadow = await createDatabase(superuserUrl, 'commit_shadow');
  const before = await readFile(CURRENT, 'utf8');
  try {
    await withPreparedDatabase({ connectionString: main, log }, async () => {
      await graphileMigrate.commit(
        {
          ...(await migrateSettings(asOwner(main), log)),
          shadowConnectionString: asOwner(shadow),
          rootConnectionString: superuserUrl,
          databaseOwner: 'logins_owner',
          afterReset: [{ _: 'sql', file: 'before/2-database.sql', root: true, shadow: true }],
        },
        message,
      );
    });
  } catch (error) {
    await writeFile(CURRENT, before);
    throw error;
  }
}

async function createDatabase(superuserUrl: string, name: string): Promise<string> {
  const client = new pg.Client({ connectionString: superuserUrl });
  await client.connect();
  try {
    await client.query(`drop database if exists ${name} with (force)`);
    await client.query(`create database ${name}`);
  } finally {
    await client.end();
  }
  const url = new URL(superuserUrl);
  url.pathname = `/${name}`;
  return url.toString();
}

/**
 * A connection string that acts as logins_owner, so that what it makes belongs to that role. graphile-migrate's
 * `pgSettings` would make the superuser act as it as well, who resets the shadow database.
 */
function asOwner(connectionString: string): string {
  const url = new URL(connectionString);
  url.searchParams.set('options', '-c role=logins_owner');
  return url.toString();
}
