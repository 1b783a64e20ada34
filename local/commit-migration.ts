import { readFile, writeFile } from 'node:fs/promises';
import * as graphileMigrate from 'graphile-migrate';
import { migrateSettings, withPreparedDatabase } from '../src/database/migrate.ts';
import type { Logger } from '../src/log.ts';
import { packageFile } from '../src/package.ts';
import { withClient } from './postgres/client.ts';

const CURRENT = packageFile('migrations/current.sql');

/**
 * Freezes `migrations/current.sql` as the next file of `migrations/committed/`, after trying it on two databases of a
 * scratch cluster. If it fails, `current.sql` is left as it was. graphile-migrate alone would leave it expanded.
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
  await withClient(superuserUrl, async (client) => {
    await client.query(`drop database if exists ${name} with (force)`);
    await client.query(`create database ${name}`);
  });
  const url = new URL(superuserUrl);
  url.pathname = `/${name}`;
  return url.toString();
}

/**
 * A connection string that acts as logins_owner, so that this role owns what it makes. With graphile-migrate's
 * `pgSettings`, the superuser who resets the shadow database would act as that role, too.
 */
function asOwner(connectionString: string): string {
  const url = new URL(connectionString);
  url.searchParams.set('options', '-c role=logins_owner');
  return url.toString();
}
