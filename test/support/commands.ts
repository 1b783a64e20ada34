import { execFile } from 'node:child_process';
import path from 'node:path';
import { childEnvironment, MASKED_LOGINS } from '../../local/environment.ts';

const ROOT = path.join(import.meta.dirname, '../..');
/** It is for development only, so that `masked-logins` does not have it. */
const SEND = path.join(ROOT, 'local/cli/send.ts');
/** A command that is still running then does not end by itself, in milliseconds. */
const TIMEOUT_MS = 30_000;

export interface Outcome {
  /** The exit code; null if the command was killed. */
  code: number | null;
  stdout: string;
  stderr: string;
  ms: number;
}

/** Runs a command line such as `worker --once`, with no environment variables except these. */
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
        timeout: TIMEOUT_MS,
        killSignal: 'SIGKILL',
      },
      (_error, stdout, stderr) =>
        resolve({ code: child.exitCode, stdout, stderr, ms: performance.now() - startedAt }),
    );
  });
}
