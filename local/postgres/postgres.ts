import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { childEnvironment } from '../environment.ts';
import { FatalError } from '../../src/errors.ts';
import { findBinaries, type PostgresBinaries } from './binaries.ts';
import { initialiseCluster, SUPERUSER } from './cluster.ts';
import {
  endServers,
  FAST_SHUTDOWN_MS,
  readPostmaster,
  removeStrangersPidFile,
  stopLeftover,
} from './leftovers.ts';
import { asUser, serverUser } from './os-user.ts';
import { pause } from '../../src/wait.ts';
import { freePort } from '../ports.ts';

/** How often a server that was killed is tried again while its orphans still hold its shared memory. */
const RETRY_MS = 200;
/** How long those orphans get to notice that their postmaster is gone before they are ended. */
const ORPHANS_MS = 2_000;
const READY_POLL_MS = 20;
const START_ATTEMPTS = 5;

export interface PostgresOptions {
  /** Made with `placeForData`, so that the server's user gets there. */
  dataDirectory: string;
  /** Appended to, by the server itself. */
  logFile: string;
  /** The port of last time; another is taken if it is no longer free. */
  port?: number | undefined;
  superuserPassword: string;
  /** The npm package that brings the server; tests also run on an older major version. */
  source?: string;
  settings?: Record<string, string>;
  /** Called when a server that had died takes connections again. */
  onRestart?: () => void;
}

export interface Postgres {
  readonly port: number;
  /** A connection string, by default the superuser's. */
  url(database: string, user?: string, password?: string): string;
  /** The postmaster's process id, or undefined while it is down. */
  pid(): number | undefined;
  /** Sends the postmaster a signal; one that dies of it is started again. */
  kill(signal: NodeJS.Signals): void;
  /** Stops the server for good. */
  stop(): Promise<void>;
}

/** Durable as in production (fsync and full page writes stay on), and reachable from this machine alone. */
const SETTINGS = {
  listen_addresses: '127.0.0.1',
  unix_socket_directories: '',
  max_connections: '100',
  log_line_prefix: '%m [%p] ',
  log_timezone: 'UTC',
  timezone: 'UTC',
};

/**
 * Starts a real Postgres, making its cluster first where there is none, and keeps it running: when its postmaster
 * dies it is started again on the same port, as a supervisor would.
 *
 * @throws {FatalError} where it does not start
 */
export async function startPostgres(options: PostgresOptions): Promise<Postgres> {
  const binaries = await findBinaries(options.source);
  await stopLeftover(options.dataDirectory);
  await initialiseCluster(binaries, options.dataDirectory, options.superuserPassword);
  const server = new SupervisedServer(binaries, options);
  await server.start();
  return server;
}

class SupervisedServer implements Postgres {
  port = 0;
  readonly #binaries: PostgresBinaries;
  readonly #options: PostgresOptions;
  readonly #log: number;
  readonly #stopping = new AbortController();
  #child: ChildProcess | undefined;
  #supervision: Promise<void> = Promise.resolve();

  constructor(binaries: PostgresBinaries, options: PostgresOptions) {
    this.#binaries = binaries;
    this.#options = options;
    this.#log = openSync(options.logFile, 'a', 0o600);
  }

  async start(): Promise<void> {
    let port = this.#options.port;
    for (let attempt = 1; ; attempt += 1) {
      this.port = await freePort(port);
      removeStrangersPidFile(this.#options.dataDirectory);
      if (await this.#launch()) break;
      // Somebody may have taken the port between our looking and the server's binding it: not twice the same.
      port = undefined;
      if (attempt === START_ATTEMPTS) {
        closeSync(this.#log);
        throw new FatalError(`Postgres does not start; its log says why: ${this.#options.logFile}`);
      }
    }
    process.on('exit', this.#onExit);
    this.#supervision = this.#supervise();
  }

  url(database: string, user = SUPERUSER, password = this.#options.superuserPassword): string {
    const login = `${encodeURIComponent(user)}:${encodeURIComponent(password)}`;
    return `postgres://${login}@127.0.0.1:${this.port}/${encodeURIComponent(database)}`;
  }

  pid(): number | undefined {
    return this.#child?.pid;
  }

  kill(signal: NodeJS.Signals): void {
    this.#child?.kill(signal);
  }

  async stop(): Promise<void> {
    if (this.#stopping.signal.aborted) return this.#supervision;
    this.#stopping.abort();
    process.off('exit', this.#onExit);
    // Fast shutdown: sessions are ended, data is checkpointed. Should it hang, recovery does the rest at next start.
    this.kill('SIGINT');
    const impatience = setTimeout(() => this.kill('SIGQUIT'), FAST_SHUTDOWN_MS);
    await this.#supervision;
    clearTimeout(impatience);
    closeSync(this.#log);
  }

  /** A process that ends without stopping its server takes it along. */
  readonly #onExit = (): void => this.kill('SIGINT');

  async #supervise(): Promise<void> {
    for (;;) {
      if (this.#child !== undefined) await once(this.#child, 'exit');
      this.#child = undefined;
      if (this.#stopping.signal.aborted) return;
      if (!(await this.#restart())) return;
      this.#options.onRestart?.();
    }
  }

  /** @returns false where the server is to stop instead */
  async #restart(): Promise<boolean> {
    const { dataDirectory } = this.#options;
    const deadline = Date.now() + ORPHANS_MS;
    while (!this.#stopping.signal.aborted) {
      removeStrangersPidFile(dataDirectory);
      if (await this.#launch()) return true;
      await pause(RETRY_MS, this.#stopping.signal);
      // An orphan in the middle of a long computation does not look up for minutes.
      if (Date.now() > deadline) await endServers(dataDirectory).catch(() => {});
    }
    return false;
  }

  /** @returns whether a server takes connections, once it does or has ended */
  async #launch(): Promise<boolean> {
    const { dataDirectory, settings } = this.#options;
    const all = Object.entries({ ...SETTINGS, ...settings, port: String(this.port) });
    const child = spawn(
      this.#binaries.postgres,
      ['-D', dataDirectory, ...all.flatMap(([name, value]) => ['-c', `${name}=${value}`])],
      {
        ...asUser(serverUser()),
        cwd: dataDirectory,
        env: childEnvironment({}),
        stdio: ['ignore', this.#log, this.#log],
        // In a session of its own: Ctrl-C in a terminal is for us, and we decide how the server stops.
        detached: true,
      },
    );
    const ended = new AbortController();
    const end = () => ended.abort();
    child.once('exit', end).once('error', end);
    this.#child = child;
    // Asked to stop while it was being spawned.
    if (this.#stopping.signal.aborted) child.kill('SIGINT');
    while (!ended.signal.aborted) {
      const postmaster = readPostmaster(dataDirectory);
      if (postmaster?.pid === child.pid && postmaster?.ready) return true;
      await pause(READY_POLL_MS);
    }
    this.#child = undefined;
    return false;
  }
}
