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

/** How often to try to restart a killed server while its orphans still hold its shared memory, in milliseconds. */
const RETRY_MS = 200;
/** How long those orphans may take to notice that their postmaster is gone, before they are killed, in milliseconds. */
const ORPHANS_MS = 2_000;
const READY_POLL_MS = 20;
const START_ATTEMPTS = 5;

export interface PostgresOptions {
  /** From `placeForData`, so that the server's user can reach it. */
  dataDirectory: string;
  /** The server appends to it. */
  logFile: string;
  /** The port of the last time. If it is not free, another one is used. */
  port?: number | undefined;
  superuserPassword: string;
  /** The npm package with the server. Tests also run on an older major version. */
  source?: string;
  settings?: Record<string, string>;
  /** Called when a server that had crashed accepts connections again. */
  onRestart?: () => void;
}

export interface Postgres {
  readonly port: number;
  /** A connection string, by default the superuser's. */
  url(database: string, user?: string, password?: string): string;
  /** The postmaster's process id; undefined while it does not run. */
  pid(): number | undefined;
  /** Sends a signal to the postmaster. If it ends, it is restarted. */
  kill(signal: NodeJS.Signals): void;
  /** Stops the server for good. */
  stop(): Promise<void>;
}

/** Durable as in production (fsync and full page writes are on), and reachable only from this machine. */
const SETTINGS = {
  listen_addresses: '127.0.0.1',
  unix_socket_directories: '',
  max_connections: '100',
  log_line_prefix: '%m [%p] ',
  log_timezone: 'UTC',
  timezone: 'UTC',
};

/**
 * Starts a real Postgres and keeps it running. It creates the cluster if there is none. If the postmaster crashes, it
 * is restarted on the same port, as by a supervisor.
 *
 * @throws {FatalError} if it does not start
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
      // Another program may have taken the port meanwhile, so try another port.
      port = undefined;
      if (attempt === START_ATTEMPTS) {
        closeSync(this.#log);
        throw new FatalError(`Postgres does not start: see its log ${this.#options.logFile}`);
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
    // Fast shutdown: it ends sessions and writes a checkpoint. If it hangs, the next start recovers.
    this.kill('SIGINT');
    const timer = setTimeout(() => this.kill('SIGQUIT'), FAST_SHUTDOWN_MS);
    await this.#supervision;
    clearTimeout(timer);
    closeSync(this.#log);
  }

  /** Stops the server with this process. */
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

  /** @returns false if the server is stopped instead */
  async #restart(): Promise<boolean> {
    const { dataDirectory } = this.#options;
    const deadline = Date.now() + ORPHANS_MS;
    while (!this.#stopping.signal.aborted) {
      removeStrangersPidFile(dataDirectory);
      if (await this.#launch()) return true;
      await pause(RETRY_MS, this.#stopping.signal);
      // During a long computation, an orphan does not notice for minutes.
      if (Date.now() > deadline) await endServers(dataDirectory).catch(() => {});
    }
    return false;
  }

  /** Starts a server. Returns true when it accepts connections, or false when it has ended. */
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
        // In a session of its own, so that Ctrl-C in a terminal does not reach the server.
        detached: true,
      },
    );
    const ended = new AbortController();
    const end = () => ended.abort();
    child.once('exit', end).once('error', end);
    this.#child = child;
    // Stopping was requested while it was spawned.
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
