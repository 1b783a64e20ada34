import path from 'node:path';
import { readSettings } from '../../src/config.ts';
import { localDirectory } from '../environment.ts';
import { DATABASE } from '../stack/logins.ts';
import { startStack, type Stack } from '../stack/stack.ts';
import { createLogger } from '../../src/log.ts';
import { commandLine, runCommand } from '../../src/cli/command.ts';
import { stopSignal } from '../../src/cli/signals.ts';
import { aborted } from '../../src/wait.ts';

await runCommand(async () => {
  const program = commandLine(
    'stack',
    'Runs a local Postgres, migrated, and an SQS emulator until Ctrl-C. The data is kept for the next time.',
  )
    .option('--fresh', 'delete the data of the last time first', false)
    .parse();
  const { fresh } = program.opts<{ fresh: boolean }>();
  const settings = readSettings();
  const localDir = localDirectory();

  // Before anything is started: a Postgres that is half started must be stopped, too.
  const signal = stopSignal();
  const log = createLogger(settings.logLevel);
  const stack = await startStack({ localDir, fresh, log });
  try {
    process.stdout.write(describeStack(stack, localDir));
    await aborted(signal);
  } finally {
    await stack.stop();
  }
  process.stdout.write('Stopped. The data is kept for the next npm run stack.\n');
  return 0;
});

function describeStack(stack: Stack, localDir: string): string {
  const shown = path.relative(process.cwd(), localDir) || '.';
  return `
Ready.

  Postgres     127.0.0.1:${stack.postgres.port}, database ${DATABASE}
  Queue        ${stack.file.queueUrl}
  Dead letters ${stack.file.deadLetterQueueUrl}
  Logins       ${path.join(shown, 'stack.json')}, a connection string for each role
  Server log   ${path.join(shown, 'postgres.log')}

In another terminal:  npm run send -- --count 1000 && npm run load && npm run worker -- --once
Ctrl-C stops both.

`;
}
