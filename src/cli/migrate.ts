import { readSettings, requireDatabase } from '../config.ts';
import { migrate } from '../database/migrate.ts';
import { createLogger } from '../log.ts';
import { runCommand } from './command.ts';

await runCommand(async () => {
  const settings = readSettings('owner');
  const { url } = requireDatabase(settings);
  await migrate({ connectionString: url, log: createLogger(settings.logLevel) });
  process.stdout.write('The database is up to date.\n');
});
