/**
 * The command `masked-logins`. This file and the two it imports have every command line. A command's own code is loaded
 * only when the command runs, because its imports take a while.
 */
import { readFileSync } from 'node:fs';
import { packageFile } from '../package.ts';
import { commandLine, runCommand } from './command.ts';
import { addCompletion } from './completion.ts';
import { keysCommand } from './keys-command.ts';

const { version } = JSON.parse(readFileSync(packageFile('package.json'), 'utf8')) as { version: string };

const program = commandLine('masked-logins', 'Moves login events from SQS into Postgres, masked', [
  ['masked-logins migrate', 'create or update the database of DATABASE_URL'],
  ['masked-logins load --follow', 'move messages from the queue to Postgres until stopped'],
  ['masked-logins worker', 'mask what is staged, and delete it from the queue'],
]).version(version, '-V, --version', 'print the version');

program.addCommand(
  commandLine(
    'migrate',
    'Creates or updates the roles, schemas and functions in the database of DATABASE_URL; can be run at any time',
    [['masked-logins migrate', 'as a login with CREATEROLE (docs/operations.md)']],
  ).action(() => runCommand(async () => (await import('./migrate.ts')).run())),
);

program.addCommand(
  commandLine('load', 'Moves login events from the SQS queue into staging, until the queue is empty', [
    ['masked-logins load', 'load what is in the queue, then exit'],
    ['masked-logins load --follow', 'run until SIGTERM, as a service'],
    ['masked-logins load --json', 'print the summary for a program'],
  ])
    .option('--follow', 'run until SIGTERM or Ctrl-C')
    .option('--json', 'print the summary as JSON')
    .action((options) => runCommand(async () => (await import('./load.ts')).run(options))),
);

program.addCommand(
  commandLine('worker', 'Masks staged batches, deletes their messages from SQS, and runs maintenance', [
    ['masked-logins worker', 'run until SIGTERM, as a service'],
    ['masked-logins worker --once', 'do what is due, then exit: from cron, or after a load'],
  ])
    .option('--once', 'run until no job is due, empty staging of what is done, then exit')
    .action((options) => runCommand(async () => (await import('./worker.ts')).run(options))),
);

program.addCommand(
  commandLine('status', 'Shows where the messages are, from the queue to user_logins', [
    ['masked-logins status', 'print a table'],
    ['masked-logins status --json', 'print an object for a program'],
    ['watch masked-logins status', 'print the table every two seconds'],
  ])
    .option('--json', 'print JSON')
    .action((options) => runCommand(async () => (await import('./status.ts')).run(options))),
);

program.addCommand(keysCommand());
addCompletion(program);
await program.parseAsync();
