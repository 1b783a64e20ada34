/** `masked-logins COMMAND`: what runs in production. */
import { readFile } from 'node:fs/promises';
import tab from '@bomb.sh/tab/commander';
import type { Command } from 'commander';
import { EXIT_USAGE } from '../errors.ts';
import { packageFile } from '../package.ts';
import { commandLine } from './command.ts';

/** Each is loaded only when it is needed: what one of them imports takes a while. */
const COMMANDS: Record<string, () => Promise<{ command: () => Command }>> = {
  migrate: () => import('./migrate.ts'),
  load: () => import('./load.ts'),
  worker: () => import('./worker.ts'),
  status: () => import('./status.ts'),
  keys: () => import('./keys.ts'),
};

/** What is not one command's affair, so that all of them are needed. */
const OTHERS = ['help', '--help', '-h', '--version', '-V', 'complete'];

const EXAMPLES = [
  ['masked-logins migrate', 'make or update the database of DATABASE_URL'],
  ['masked-logins load --follow', 'move messages from the queue into Postgres until stopped'],
  ['masked-logins worker', 'mask what is loaded, and delete it from the queue'],
  ['source <(masked-logins complete bash)', 'complete commands and options with the Tab key; also zsh, fish'],
] as const;

const [name] = process.argv.slice(2);
if (name !== undefined && Object.hasOwn(COMMANDS, name)) await run([name]);
else if (name !== undefined && OTHERS.includes(name)) await run(Object.keys(COMMANDS));
else {
  const names = Object.keys(COMMANDS).join(', ');
  process.stderr.write(
    `usage: masked-logins COMMAND [options]; COMMAND is one of ${names} (--help says more)\n`,
  );
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
