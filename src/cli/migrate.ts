import type { Command } from 'commander';
import { readSettings, requireDatabase } from '../config.ts';
import { migrate } from '../database/migrate.ts';
import { explaining } from '../explain.ts';
import { createLogger } from '../log.ts';
import { commandLine, runCommand } from './command.ts';

/** `migrate`: creates or updates everything in the database. */
export function command(): Command {
  return commandLine(
    'migrate',
    'Creates or updates the roles, schemas and functions in the database of DATABASE_URL; it can be run at any time',
    [
      [
        'DATABASE_URL=postgres://migrator@db.example/logins masked-logins migrate',
        'as a login with CREATEROLE',
      ],
    ],
  ).action(() => runCommand(run));
}

async function run(): Promise<void> {
  const settings = readSettings();
  const database = requireDatabase(settings);
  const log = createLogger(settings.logLevel);
  await explaining({ command: 'migrate', database }, () => migrate({ connectionString: database.url, log }));
  process.stdout.write('The database is up to date.\n');
}
