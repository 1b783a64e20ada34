/** The commands as people start them: real processes of package.json's scripts, with nothing in their environment but what is given. */
import { execFile, spawnSync } from 'node:child_process';
import path from 'node:path';
import { childEnvironment } from '../../local/environment.ts';
import { read } from '../house/files.ts';

export const ROOT = path.join(import.meta.dirname, '../..');

/** The Node that started npm, where that is one that cannot run TypeScript. */
export const OLD = [process.env['npm_node_execpath'] ?? '', '/usr/bin/node'].find(
  (node) => versionOf(node) < 22.18,
);

function versionOf(node: string): number {
  const { stdout } = spawnSync(node, ['--version'], { encoding: 'utf8' });
  const [major, minor] = (stdout ?? '').replace('v', '').split('.').map(Number);
  return major === undefined || Number.isNaN(major) ? Number.POSITIVE_INFINITY : major + (minor ?? 0) / 100;
}

/** Each script of ours, as the arguments of `node`. */
export const COMMANDS = new Map(
  Object.entries((JSON.parse(read('package.json')) as { scripts: Record<string, string> }).scripts)
    .filter(([, line]) => line.startsWith('node --import'))
    .map(([name, line]) => [name, line.split(' ').slice(1)]),
);

export interface Outcome {
  /** The exit code, or the signal that ended it: SIGKILL where it took longer than it may. */
  code: number | string;
  stdout: string;
  stderr: string;
}

export interface Start {
  variables?: Record<string, string>;
  /** Longer than this, in milliseconds, is a hang. */
  within?: number;
  node?: string;
  nodeOptions?: string[];
}

/** Runs a command to its end. */
export function run(command: string, args: string[], start: Start = {}): Promise<Outcome> {
  const { variables = {}, within = 60_000, node = process.execPath, nodeOptions = [] } = start;
  return new Promise((resolve) => {
    const child = execFile(
      node,
      [...nodeOptions, ...COMMANDS.get(command)!, ...args],
      {
        cwd: ROOT,
        env: childEnvironment({ LOCAL_DIR: '/nowhere', ...variables }),
        timeout: within,
        killSignal: 'SIGKILL',
      },
      (_, stdout, stderr) => resolve({ code: child.exitCode ?? String(child.signalCode), stdout, stderr }),
    );
  });
}

/** What standard error holds beside structured log lines of level info and below. */
export function complaints(stderr: string): string[] {
  return stderr.split('\n').filter((line) => line.trim() !== '' && !isInformation(line));
}

function isInformation(line: string): boolean {
  try {
    return (JSON.parse(line) as { level: number }).level <= 30;
  } catch {
    return false;
  }
}
