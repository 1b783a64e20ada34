import { chmodSync, existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { MASKED_LOGINS } from '../../local/environment.ts';
import { has, maskedLogins, runProgram } from './shipped.ts';

/** What is typed, and what Tab offers. */
const CASES: [typed: string, offered: string[]][] = [
  ['', ['migrate', 'load', 'worker', 'status', 'keys', 'complete', 'help']],
  ['l', ['load']],
  ['keys r', ['rotate', 'resume', 'rewrap']],
  ['keys rotate --', ['--purpose', '--field', '--help']],
  ['keys rotate --purpose ', ['token', 'cipher']],
  ['keys rotate --purpose token --f', ['--field']],
  ['keys rotate --purpose token --field ', ['ip', 'device_id', 'body']],
  ['keys destroy ', ['token', 'cipher']],
  ['keys destroy --losing 5 c', ['cipher']],
  ['load ', ['--follow', '--json', '--help']],
  ['worker --o', ['--once']],
  ['help k', ['keys']],
  ['complete ', ['bash', 'zsh', 'fish']],
  ['--v', ['--version']],
  // The shell itself completes names of files where there is nothing else.
  ['keys rewrap --new-kek-file ', []],
  ['keys destroy token ', []],
];

let directory: string;
let variables: Record<string, string>;
let script: string;
beforeAll(async () => {
  directory = mkdtempSync(path.join(tmpdir(), 'masked-logins-completion-'));
  const command = path.join(directory, 'masked-logins');
  writeFileSync(command, `#!/bin/sh\nexec '${process.execPath}' '${MASKED_LOGINS}' "$@"\n`);
  chmodSync(command, 0o755);
  variables = { PATH: `${directory}:${process.env['PATH']}` };
  script = path.join(directory, 'completion.bash');
  writeFileSync(script, (await maskedLogins(['complete', 'bash'])).stdout);
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** What a real bash offers. It reads the script twice, as it does when ~/.bashrc is read again. */
async function offeredByBash(words: string[]): Promise<{ offered: string[]; stderr: string }> {
  const commands = `
    source "$0"; source "$0"
    COMP_WORDS=(masked-logins "$@") COMP_CWORD=$#
    $(complete -p masked-logins | sed -E 's/.* -F ([^ ]+) .*/\\1/')
    printf '%s\\n' "\${COMPREPLY[@]}"`;
  const args = ['--norc', '--noprofile', '-c', commands, script, ...words];
  const { stdout, stderr } = await runProgram('bash', args, variables);
  return { offered: stdout.split('\n').filter((line) => line !== ''), stderr };
}

test.each(CASES)('bash completes "masked-logins %s"', async (typed, offered) => {
  expect(await offeredByBash(typed.split(' '))).toEqual({ offered, stderr: '' });
});

test('nothing of what is typed is evaluated', async () => {
  const proof = path.join(directory, 'proof');
  for (const typed of [`$(touch ${proof})`, `\`touch ${proof}\``, `; touch ${proof};`]) {
    await offeredByBash(['keys', typed, '']);
    await offeredByBash(['keys', typed]);
  }
  expect(existsSync(proof)).toBe(false);
});

test.skipIf(!has('fish')).each(CASES.filter(([, offered]) => offered.length > 0))(
  'fish completes "masked-logins %s"',
  async (typed, offered) => {
    const script = 'masked-logins complete fish | source; complete --do-complete $argv[1]';
    const { stdout } = await runProgram('fish', ['-c', script, `masked-logins ${typed}`], variables);
    const lines = stdout.split('\n').filter((line) => line !== '');
    expect(lines.map((line) => line.split('\t')[0]).sort()).toEqual([...offered].sort());
  },
);

test.skipIf(!has('zsh'))('the script for zsh is one that zsh can read', async () => {
  const { code, stderr } = await runProgram('zsh', [
    '-fnc',
    (await maskedLogins(['complete', 'zsh'])).stdout,
  ]);
  expect([code, stderr]).toEqual([0, '']);
});

test.each([
  ['zsh', ':'],
  ['fish', '\t'],
])('%s is told what each word means', async (shell, separator) => {
  const { stdout } = await maskedLogins(['complete', shell, '--', 'keys', 's']);
  expect(stdout).toMatch(new RegExp(`^seal${separator}\\w.+\n$`));
});
