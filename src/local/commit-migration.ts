import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import * as graphileMigrate from 'graphile-migrate';
import pg from 'pg';
import { asRole, migrateSettings, prepared } from '../database/migrate.ts';
import type { Logger } from '../log.ts';

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
    await prepared(main, log, async () => {
      await graphileMigrate.commit(
        {
          ...(await migrateSettings(asRole(main, 'logins_owner'), log)),
          shadowConnectionString: asRole(shadow, 'logins_owner'),
          rootConnectionString: superuserUrl,
          databaseOwner: 'logins_owner',
          afterReset: [{ _: 'sql', file: 'database.sql', root: true, shadow: true }],
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
