/** `masked-logins` as a person runs it, on a terminal or not. */
import { execFile, spawnSync } from 'node:child_process';
import { childEnvironment, MASKED_LOGINS } from '../../local/environment.ts';

export interface Outcome {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** Runs it with standard output not on a terminal. */
export function maskedLogins(args: string[], variables: Record<string, string> = {}): Promise<Outcome> {
  return runProgram(process.execPath, [MASKED_LOGINS, ...args], variables);
}

export function runProgram(
  program: string,
  args: string[],
  variables: Record<string, string> = {},
): Promise<Outcome> {
  return new Promise((resolve) => {
    const child = execFile(program, args, { env: childEnvironment(variables) }, (_error, stdout, stderr) =>
      resolve({ code: child.exitCode, stdout, stderr }),
    );
  });
}

/** Whether this machine has a program that answers to `--version`. */
export function has(program: string): boolean {
  return spawnSync(program, ['--version']).status === 0;
}

/** `script` of util-linux, which runs a command on a terminal of its own. */
export const HAS_TERMINAL = spawnSync('script', ['--version'], { encoding: 'utf8' }).stdout?.includes(
  'util-linux',
);

/** The lines it prints on a terminal of so many columns. */
export async function onTerminal(
  columns: number,
  args: string[],
  variables: Record<string, string> = {},
): Promise<string[]> {
  const line = [process.execPath, MASKED_LOGINS, ...args].map((part) => `'${part}'`).join(' ');
  const { stdout } = await runProgram(
    'script',
    ['--quiet', '--return', '--command', `stty cols ${columns}; ${line}`, '/dev/null'],
    variables,
  );
  return stdout.split(/\r?\n/).filter((each) => each !== '');
}
