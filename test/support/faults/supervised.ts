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

/** How a process ended: its exit code, or the signal. */
export type End = number | NodeJS.Signals;

/** Loader or worker as a process of its own, started again whenever it ends, as a supervisor would. */
export class Supervised {
  readonly name: 'loader' | 'worker';
  /** Ends that nobody here brought about. */
  readonly unexpected: End[] = [];
  readonly #args: string[];
  readonly #variables: Record<string, string>;
  readonly #preloads: string[];
  readonly #armed = new Map<string, () => void>();
  #overrides: Record<string, string> = {};
  #child: ChildProcess | undefined;
  #ended: Promise<End> = Promise.resolve(0);
  #isWanted = false;
  #isOurDoing = false;
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

  /** The end of what it wrote. */
  get output(): string {
    return this.#output;
  }

  /** Resident memory, in MiB; 0 while it does not run. */
  get memory(): number {
    try {
      const status = readFileSync(`/proc/${this.#child?.pid}/status`, 'utf8');
      return Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1] ?? 0) / 1_024;
    } catch {
      return 0;
    }
  }

  /** @param overrides settings other than usual; they last until it is started anew with others */
  start(overrides: Record<string, string> = {}): void {
    this.#overrides = overrides;
    this.#isWanted = true;
    this.#spawn();
  }

  /** Starts it again where a fault that failed half-way has left it ended: the faults after it need it. */
  resume(): void {
    if (!this.#isWanted) this.start();
  }

  /**
   * Arms a point, and ends when the process is there; it waits there for `go` or for its end.
   *
   * @throws {FaultError} where it does not come to it
   */
  async reach(point: string, within = 90_000): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<boolean>();
    this.#armed.set(point, () => resolve(true));
    this.say({ arm: point });
    const reached = await Promise.race([promise, sleep(within, false, { ref: false })]);
    this.#armed.delete(point);
    if (!reached) throw new FaultError(`${this.name} never came to ${point}`);
  }

  go(point: string): void {
    this.say({ go: point });
  }

  say(message: RunnerMessage): void {
    if (this.isAlive && this.#child?.connected) this.#child.send(message, () => {});
  }

  /** Sends a signal and waits for the end; the process is started again. */
  async end(signal: NodeJS.Signals): Promise<End> {
    this.#isOurDoing = true;
    this.signal(signal);
    return this.#ended;
  }

  signal(signal: NodeJS.Signals): void {
    this.#isOurDoing = true;
    this.#child?.kill(signal);
  }

  /** Ends it, and leaves it ended. */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<End> {
    this.#isWanted = false;
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
    this.#isOurDoing = false;
    const keep = (chunk: unknown) => {
      this.#output = (this.#output + String(chunk)).slice(-OUTPUT_KEPT);
    };
    child.stdout?.on('data', keep);
    child.stderr?.on('data', keep);
    child.on('message', (message: PointMessage) => this.#arrived(message.at));
    for (const point of this.#armed.keys()) this.say({ arm: point });
    this.#ended = once(child, 'exit').then(([code, signal]) => {
      const end = (code ?? signal) as End;
      keep(`[ended: ${end}]\n`);
      if (!this.#isOurDoing) this.unexpected.push(end);
      void this.#restart();
      return end;
    });
  }

  #arrived(point: string): void {
    const arrived = this.#armed.get(point);
    // Armed for somebody who has given up waiting.
    if (arrived === undefined) this.go(point);
    else arrived();
  }

  async #restart(): Promise<void> {
    if (!this.#isWanted) return;
    await sleep(RESTART_AFTER_MS);
    if (this.#isWanted && !this.isAlive) this.#spawn();
  }
}
