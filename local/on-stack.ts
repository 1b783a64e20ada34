/**
 * `npm run load` and the like: a command of `masked-logins`, with the settings of the local stack where none are given.
 * The package has only the commands themselves.
 */
import { runCommand } from '../src/cli/command.ts';
import { fillSettings } from './environment.ts';
import type { StackLogin } from './stack/logins.ts';

const LOGINS: Record<string, StackLogin> = {
  load: 'loader',
  worker: 'worker',
  status: 'worker',
  keys: 'custodian',
  migrate: 'owner',
};

await runCommand(async () => {
  const [command = '', subcommand] = process.argv.slice(2);
  const filled = fillSettings(LOGINS[command] ?? 'worker');
  // The key-encryption key's file is the stack's own, so it is to hold the new key.
  if (subcommand === 'rewrap' && 'MASKING_KEK_FILE' in filled) process.argv.push('--in-place');
});
await import('../src/cli/main.ts');
