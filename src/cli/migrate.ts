import { readSettings, requireDatabase } from '../config.ts';
import { migrate } from '../database/migrate.ts';
import { createLogger } from '../log.ts';
import { commandLine, runCommand } from './command.ts';

await runCommand(async () => {
  commandLine(
    'migrate',
    'Makes or updates the roles, schemas and functions in the database of DATABASE_URL; may be run again at any time',
  ).parse();
  const settings = readSettings('owner');
  const { url } = requireDatabase(settings);
  await migrate({ connectionString: url, log: createLogger(settings.logLevel) });
  process.stdout.write('The database is up to date.\n');
});
