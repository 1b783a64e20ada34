import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { childEnvironment, MASKED_LOGINS } from '../../../local/environment.ts';
import { FaultError, OUTPUT_KEPT, type PointMessage, type RunnerMessage } from './protocol.ts';

const ROOT = path.join(import.meta.dirname, '../../..');
const RESTART_AFTER_MS = 200;
const POINTS = pathToFileURL(path.join(import.meta.dirname, 'points.ts')).href;

/** How a process ended: its exit code, or the signal that ended it. */
export type End = number | NodeJS.Signals;

/** Loader or worker as a child process, restarted whenever it ends, as by a supervisor. */
export class Supervised {
  readonly name: 'loader' | 'worker';
  /** How the process ended, for each time that no test ended it. */
  readonly unexpected: End[] = [];
  readonly #args: string[];
  readonly #variables: Record<string, string>;
  readonly #preloads: string[];
  readonly #armed = new Map<string, () => void>();
  #overrides: Record<string, string> = {};
  #child: ChildProcess | undefined;
  #ended: Promise<End> = Promise.resolve(0);
  #isToRun = false;
  #isEndExpected = false;
  #output = '';

  constructor(
    name: 'loader' | 'worker',
    variables: Record<string, string>,
    options: { preloads?: string[] } = {},
  ) {
    this.name = name;
    this.#args = [MASKED_LOGINS, ...(name === 'loader' ? ['load', '--follow'] : ['worker'])];
    this.#variables = variables;
    this.#preloads = [POINTS, ...(options.preloads ?? [])];
  }

  get isAlive(): boolean {
    return this.#child !== undefined && this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** The last part of the process's output. */
  get output(): string {
    return this.#output;
  }

  /** Resident memory in MiB; 0 while the process does not run. */
  get memory(): number {
    try {
      const status = readFileSync(`/proc/${this.#child?.pid}/status`, 'utf8');
      return Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1] ?? 0) / 1_024;
    } catch {
      return 0;
    }
  }

  /** @param overrides settings that differ from the usual ones, also after restarts, until the next call of `start` */
  start(overrides: Record<string, string> = {}): void {
    this.#overrides = overrides;
    this.#isToRun = true;
    this.#spawn();
  }

  /** Starts the process if a fault that failed has left it stopped: later faults need it. */
  resume(): void {
    if (!this.#isToRun) this.start();
  }

  /**
   * Arms a point, and waits until the process has reached it. The process waits there for `go`, or until it is killed.
   *
   * @throws {FaultError} if the process does not reach the point in time
   */
  async reach(point: string, timeoutMs = 90_000): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<boolean>();
    this.#armed.set(point, () => resolve(true));
    this.send({ arm: point });
    const reached = await Promise.race([promise, sleep(timeoutMs, false, { ref: false })]);
    this.#armed.delete(point);
    if (!reached) throw new FaultError(`the ${this.name} did not reach ${point}`);
  }

  go(point: string): void {
    this.send({ go: point });
  }

  send(message: RunnerMessage): void {
    if (this.isAlive && this.#child?.connected) this.#child.send(message, () => {});
  }

  /** Sends a signal and waits until the process has ended. It is restarted. */
  async end(signal: NodeJS.Signals): Promise<End> {
    this.#isEndExpected = true;
    this.signal(signal);
    return this.#ended;
  }

  signal(signal: NodeJS.Signals): void {
    this.#isEndExpected = true;
    this.#child?.kill(signal);
  }

  /** Sends a signal and waits until the process has ended. It is not restarted. */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<End> {
    this.#isToRun = false;
    return this.end(signal);
  }

  #spawn(): void {
    const imports = this.#preloads.map((file) => `--import ${file}`).join(' ');
    const child = spawn(process.execPath, this.#args, {
      cwd: ROOT,
      env: childEnvironment({ ...this.#variables, ...this.#overrides, NODE_OPTIONS: imports }),
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    });
    this.#child = child;
    this.#isEndExpected = false;
    const keepOutput = (chunk: unknown) => {
      this.#output = (this.#output + String(chunk)).slice(-OUTPUT_KEPT);
    };
    child.stdout?.on('data', keepOutput);
    child.stderr?.on('data', keepOutput);
    child.on('message', (message: PointMessage) => this.#onPoint(message.at));
    for (const point of this.#armed.keys()) this.send({ arm: point });
    this.#ended = once(child, 'exit').then(([code, signal]) => {
      const end = (code ?? signal) as End;
      keepOutput(`[ended: ${end}]\n`);
      if (!this.#isEndExpected) this.unexpected.push(end);
      void this.#restart();
      return end;
    });
  }

  #onPoint(point: string): void {
    const onReached = this.#armed.get(point);
    // Without it, `reach` has timed out.
    if (onReached === undefined) this.go(point);
    else onReached();
  }

  async #restart(): Promise<void> {
    if (!this.#isToRun) return;
    await sleep(RESTART_AFTER_MS);
    if (this.#isToRun && !this.isAlive) this.#spawn();
  }
}
