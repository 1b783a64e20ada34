import path from 'node:path';
import { SettingError } from '../../src/errors.ts';
import { commitMigration } from '../commit-migration.ts';
import { placeForData } from '../postgres/os-user.ts';
import { startPostgres } from '../postgres/postgres.ts';
import { withScratchDirectory } from '../scratch.ts';
import { createLogger } from '../../src/log.ts';
import { commandLine, runCommand } from '../../src/cli/command.ts';

const command = commandLine(
  'migration:commit',
  'Freezes migrations/current.sql as the next committed migration, after a trial on a scratch Postgres',
).argument('<message>', 'what the migration does, in a few words');

await runCommand(async () => {
  const [message] = command.parse().args;
  if (message === undefined || message.trim() === '') {
    throw new SettingError(
      'a committed migration needs a message: npm run migration:commit -- "what it does"',
    );
  }
  await withScratchDirectory('migration', async (directory) => {
    const postgres = await startPostgres({
      dataDirectory: placeForData(directory),
      logFile: path.join(directory, 'postgres.log'),
      superuserPassword: 'scratch',
    });
    try {
      await commitMigration({ superuserUrl: postgres.url('postgres'), message, log: createLogger('info') });
    } finally {
      await postgres.stop();
    }
  });
  process.stdout.write('Committed. See migrations/committed, and git add it.\n');
});
