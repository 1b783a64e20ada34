import { spawn, type ChildProcess } from 'node:child_process';
import { FatalError } from '../../src/errors.ts';
import { MASKED_LOGINS } from '../environment.ts';

/** A command as a child process. Its standard error is shown only if it fails. */
export class Child {
  readonly ended: Promise<void>;
  readonly #name: string;
  readonly #process: ChildProcess;
  #stderr = '';
  #failed = false;

  constructor(command: string, environment: NodeJS.ProcessEnv) {
    this.#name = command;
    const child = spawn(process.execPath, [MASKED_LOGINS, command], {
      env: environment,
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    this.#process = child;
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr += text;
    });
    this.ended = new Promise((resolve) => {
      child.once('error', () => resolve());
      child.once('close', (code) => {
        this.#failed = code !== 0;
        resolve();
      });
    });
  }

  stop(): void {
    this.#process.kill('SIGTERM');
  }

  async end(): Promise<void> {
    await this.ended;
    this.throwIfFailed();
  }

  throwIfFailed(): void {
    if (this.#failed) throw new FatalError(`${this.#name} failed: ${this.#stderr.trim()}`);
  }
}
