/**
 * `npm run load` etc.: a command of `masked-logins`. The local stack provides settings that are missing. The package
 * contains only the commands themselves.
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
  // The file of the key-encryption key belongs to the stack, so it must contain the new key.
  if (subcommand === 'rewrap' && 'MASKING_KEK_FILE' in filled) process.argv.push('--in-place');
});
await import('../src/cli/main.ts');
