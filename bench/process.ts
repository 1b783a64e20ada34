import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { FatalError } from '../src/errors.ts';
import { within } from '../src/wait.ts';

/** How long a process may take to end after SIGTERM, in milliseconds. */
const GRACE_MS = 10_000;
/** How many characters of its output are kept, for the error if it fails. */
const OUTPUT_KEPT = 4_096;

/** A process of a contender. It is killed when this process exits. */
export class BenchProcess {
  readonly name: string;
  readonly pid: number;
  /** Rejects if the process ends although `stop` was not called. */
  readonly failed: Promise<never>;
  readonly #process: ChildProcess;
  readonly #ended: Promise<void>;
  #isStopping = false;
  #output = '';

  /** @param name the name to report, such as `worker` */
  constructor(name: string, script: string, args: readonly string[], environment: NodeJS.ProcessEnv) {
    this.name = name;
    const child = spawn(process.execPath, [...nodeOptions(this.name), script, ...args], {
      env: environment,
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    this.#process = child;
    this.pid = child.pid ?? 0;
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#output = (this.#output + text).slice(-OUTPUT_KEPT);
    });
    const kill = (): void => void child.kill('SIGKILL');
    process.once('exit', kill);
    const { promise: failed, reject } = Promise.withResolvers<never>();
    this.failed = failed;
    // Prevents an unhandled rejection if nothing awaits `failed`.
    failed.catch(() => {});
    this.#ended = new Promise((resolve) => {
      const onEnd = (): void => {
        process.off('exit', kill);
        if (!this.#isStopping) reject(new FatalError(`${this.name} ended: ${this.#output.trim()}`));
        resolve();
      };
      child.once('error', onEnd);
      child.once('close', onEnd);
    });
  }

  /** Sends SIGTERM, and SIGKILL if the process does not end in time. */
  async stop(): Promise<void> {
    this.#isStopping = true;
    this.#process.kill('SIGTERM');
    await within(GRACE_MS, this.#ended);
    this.#process.kill('SIGKILL');
    await this.#ended;
  }

  /** Resident memory, in MiB. */
  residentMiB(): number {
    return Number(execFileSync('ps', ['-o', 'rss=', '-p', String(this.pid)], { encoding: 'utf8' })) / 1_024;
  }
}

/** With `BENCH_PROFILE=DIRECTORY`, every process writes a CPU profile into this directory. */
function nodeOptions(name: string): string[] {
  const directory = process.env['BENCH_PROFILE'];
  if (directory === undefined) return [];
  return ['--cpu-prof', '--cpu-prof-dir', directory, '--cpu-prof-name', `${name}-${Date.now()}.cpuprofile`];
}
