/** What the tests of the package share: copies of the checkout, npm, and the commands that ship. */
import { execFile, execFileSync } from 'node:child_process';
import { cpSync, mkdirSync } from 'node:fs';
import path from 'node:path';
import { databaseSettings, queueSettings } from '../../local/environment.ts';
import type { StackLogin } from '../../local/stack/logins.ts';
import type { StackFile } from '../../local/stack/state.ts';

const ROOT = path.join(import.meta.dirname, '../..');

/** Longer than this, in milliseconds, is a hang: the registry may be slow, and the machine busy. */
export const SLOW_MS = 600_000;

/** The commands that ship, each with the login it needs, in an order in which a message passes through them. */
export const SHIPPED: readonly (readonly [line: string, login: StackLogin])[] = [
  ['migrate', 'owner'],
  ['load', 'loader'],
  ['worker --once', 'worker'],
  ['status', 'worker'],
  ['keys list', 'custodian'],
];

export interface Outcome {
  /** The exit code, or the signal that ended it. */
  code: number | string;
  stdout: string;
  stderr: string;
}

/** What a process of a person's shell has, and what npm needs to reach a registry. */
const PASSED =
  /^(HOME|TMPDIR|LANG|NODE_EXTRA_CA_CERTS|\w+_proxy|npm_config_(cache|registry|userconfig|cafile))$/i;

/** An environment in which `node` is the one given, and nothing of this checkout's node_modules is on the path. */
export function environmentOn(node: string, variables: Record<string, string> = {}): NodeJS.ProcessEnv {
  const passed = Object.entries(process.env).filter(([name]) => PASSED.test(name));
  const others = (process.env['PATH'] ?? '').split(':').filter((each) => !each.includes('node_modules'));
  return {
    ...Object.fromEntries(passed),
    PATH: [path.dirname(node), ...others].join(':'),
    SQS_WAIT_TIME_SECONDS: '1',
    ...variables,
  };
}

/** Runs a program to its end. */
export function run(
  program: string,
  args: readonly string[],
  options: { cwd: string; env: NodeJS.ProcessEnv },
): Promise<Outcome> {
  return new Promise((resolve) => {
    const child = execFile(
      program,
      args,
      { ...options, timeout: SLOW_MS, killSignal: 'SIGKILL', maxBuffer: 16_777_216 },
      (_error, stdout, stderr) =>
        resolve({ code: child.exitCode ?? String(child.signalCode), stdout, stderr }),
    );
  });
}

/**
 * Installs with npm, from its cache where it can.
 *
 * @throws {Error} with npm's own words, for instance if it cannot reach its registry
 */
export async function install(cwd: string, args: readonly string[]): Promise<void> {
  const { code, stderr } = await run('npm', [...args, '--prefer-offline', '--no-audit', '--no-fund'], {
    cwd,
    env: environmentOn(process.execPath),
  });
  if (code !== 0) throw new Error(`npm ${args.join(' ')} ended with ${code}:\n${stderr}`);
}

/** The files of this checkout that git tracks, as they are now, in another directory. */
export function copyCheckout(to: string): void {
  const files = execFileSync('git', ['ls-files', '-z'], { cwd: ROOT, encoding: 'utf8' }).split('\0');
  for (const file of files.filter((each) => each !== '')) {
    mkdirSync(path.dirname(path.join(to, file)), { recursive: true });
    cpSync(path.join(ROOT, file), path.join(to, file));
  }
}

/** The settings of a command that runs on a stack as a login. */
export function settingsOf(stack: StackFile, login: StackLogin): Record<string, string> {
  return { ...databaseSettings(stack, login), ...queueSettings(stack) };
}
