import { execFile } from 'node:child_process';
import path from 'node:path';
import { childEnvironment, MASKED_LOGINS } from '../../local/environment.ts';

const ROOT = path.join(import.meta.dirname, '../..');
/** It is for development only, so that `masked-logins` does not have it. */
const SEND = path.join(ROOT, 'local/cli/send.ts');
/** A command that is still running then does not end by itself, in milliseconds. */
const TOO_LONG_MS = 30_000;

export interface Outcome {
  /** The exit code; null where it had to be killed. */
  code: number | null;
  stdout: string;
  stderr: string;
  ms: number;
}

/** Runs a command as a person does: `worker --once`. It sees the variables given here and no other. */
export function runCommandLine(line: string, variables: Record<string, string>): Promise<Outcome> {
  const [command, ...args] = line.split(' ');
  const startedAt = performance.now();
  return new Promise((resolve) => {
    const child = execFile(
      process.execPath,
      command === 'send' ? [SEND, ...args] : [MASKED_LOGINS, command!, ...args],
      {
        cwd: ROOT,
        env: childEnvironment(variables),
        timeout: TOO_LONG_MS,
        killSignal: 'SIGKILL',
      },
      (_error, stdout, stderr) =>
        resolve({ code: child.exitCode, stdout, stderr, ms: performance.now() - startedAt }),
    );
  });
}
