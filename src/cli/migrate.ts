import { readSettings, requireDatabase } from '../config.ts';
import { migrate } from '../database/migrate.ts';
import { explaining } from '../explain.ts';
import { createLogger } from '../log.ts';

/** `migrate`: creates or updates everything in the database. */
export async function run(): Promise<void> {
  const settings = readSettings();
  const database = requireDatabase(settings);
  const log = createLogger(settings.logLevel);
  await explaining({ command: 'migrate', database }, () => migrate({ connectionString: database.url, log }));
  process.stdout.write('The database is up to date.\n');
}
