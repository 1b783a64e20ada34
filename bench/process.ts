import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { FatalError } from '../src/errors.ts';
import { within } from '../src/wait.ts';

/** How long a process may take to end when it is told to, in milliseconds. */
const END_MS = 10_000;
/** How much of what it says is kept, for when it fails. */
const SAID = 4_096;

/** A process of one of the contenders. It ends with this process at the latest. */
export class BenchProcess {
  readonly name: string;
  readonly pid: number;
  /** Rejects when it ends without having been told to. */
  readonly failed: Promise<never>;
  readonly #process: ChildProcess;
  readonly #ended: Promise<void>;
  #isToEnd = false;
  #said = '';

  /** @param name for people, such as `worker` */
  constructor(name: string, script: string, args: readonly string[], environment: NodeJS.ProcessEnv) {
    this.name = name;
    const child = spawn(process.execPath, [...nodeOptions(this.name), script, ...args], {
      env: environment,
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    this.#process = child;
    this.pid = child.pid ?? 0;
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#said = (this.#said + text).slice(-SAID);
    });
    const kill = (): void => void child.kill('SIGKILL');
    process.once('exit', kill);
    const { promise: failed, reject } = Promise.withResolvers<never>();
    this.failed = failed;
    // Whoever waits for it may be gone.
    failed.catch(() => {});
    this.#ended = new Promise((resolve) => {
      const onEnd = (): void => {
        process.off('exit', kill);
        if (!this.#isToEnd) reject(new FatalError(`${this.name} ended: ${this.#said.trim()}`));
        resolve();
      };
      child.once('error', onEnd);
      child.once('close', onEnd);
    });
  }

  async stop(): Promise<void> {
    this.#isToEnd = true;
    this.#process.kill('SIGTERM');
    await within(END_MS, this.#ended);
    this.#process.kill('SIGKILL');
    await this.#ended;
  }

  /** Resident memory, in MiB. */
  residentMiB(): number {
    return Number(execFileSync('ps', ['-o', 'rss=', '-p', String(this.pid)], { encoding: 'utf8' })) / 1_024;
  }
}

/** `BENCH_PROFILE=DIRECTORY` writes a CPU profile of every process. */
function nodeOptions(name: string): string[] {
  const directory = process.env['BENCH_PROFILE'];
  if (directory === undefined) return [];
  return ['--cpu-prof', '--cpu-prof-dir', directory, '--cpu-prof-name', `${name}-${Date.now()}.cpuprofile`];
}
