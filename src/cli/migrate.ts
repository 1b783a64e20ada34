import { readSettings, requireDatabase } from '../config.ts';
import { migrate } from '../database/migrate.ts';
import { explaining } from '../explain.ts';
import { createLogger } from '../log.ts';
import { commandLine, runCommand } from './command.ts';

await runCommand(async () => {
  commandLine(
    'migrate',
    'Makes or updates the roles, schemas and functions in the database of DATABASE_URL; may be run again at any time',
  ).parse();
  const settings = readSettings('owner');
  const database = requireDatabase(settings);
  const log = createLogger(settings.logLevel);
  await explaining({ command: 'migrate', database }, () => migrate({ connectionString: database.url, log }));
  process.stdout.write('The database is up to date.\n');
});
