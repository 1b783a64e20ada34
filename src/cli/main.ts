/** `masked-logins COMMAND`: the commands that run in production. */
import { readFile } from 'node:fs/promises';
import tab from '@bomb.sh/tab/commander';
import type { Command } from 'commander';
import { EXIT_USAGE } from '../errors.ts';
import { packageFile } from '../package.ts';
import { commandLine } from './command.ts';

/** A command is imported only when it is needed, because its imports take a while. */
const COMMANDS: Record<string, () => Promise<{ command: () => Command }>> = {
  migrate: () => import('./migrate.ts'),
  load: () => import('./load.ts'),
  worker: () => import('./worker.ts'),
  status: () => import('./status.ts'),
  keys: () => import('./keys.ts'),
};

/** What needs all commands. */
const OTHERS = ['help', '--help', '-h', '--version', '-V', 'complete'];

const EXAMPLES = [
  ['masked-logins migrate', 'create or update the schemas in the database of DATABASE_URL'],
  ['masked-logins load --follow', 'move messages from the queue into Postgres, until it is stopped'],
  ['masked-logins worker', 'mask staged messages, and delete them from the queue'],
  ['source <(masked-logins complete bash)', 'complete commands and options with the Tab key; also zsh, fish'],
] as const;

const [name] = process.argv.slice(2);
if (name !== undefined && Object.hasOwn(COMMANDS, name)) await run([name]);
else if (name !== undefined && OTHERS.includes(name)) await run(Object.keys(COMMANDS));
else {
  const names = Object.keys(COMMANDS).join(', ');
  process.stderr.write(`usage: masked-logins COMMAND [options]; COMMAND is one of ${names} (see --help)\n`);
  process.exitCode = EXIT_USAGE;
}

async function run(names: string[]): Promise<void> {
  const program = commandLine('masked-logins', 'Moves login events from SQS into Postgres, masked', EXAMPLES);
  const { version } = JSON.parse(await readFile(packageFile('package.json'), 'utf8')) as { version: string };
  program.version(version, '-V, --version', 'print the version');
  for (const load of names.map((each) => COMMANDS[each]!)) program.addCommand((await load()).command());
  tab(program);
  await program.parseAsync();
}
