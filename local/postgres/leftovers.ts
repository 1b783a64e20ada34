import { spawnSync } from 'node:child_process';
import { readFileSync, readdirSync, readlinkSync, realpathSync, rmSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { FatalError } from '../../src/errors.ts';

/** How long a server may take over a fast shutdown before it is made to stop at once, in milliseconds. */
export const FAST_SHUTDOWN_MS = 20_000;
const QUIT_MS = 5_000;
const POLL_MS = 20;

/** What a server says of itself in its data directory. */
export interface Postmaster {
  pid: number;
  /** Takes connections: started, and through with crash recovery. */
  ready: boolean;
}

/** Reads `postmaster.pid`, whose eighth line is the state (as `pg_ctl` reads it). */
export function readPostmaster(dataDirectory: string): Postmaster | undefined {
  try {
    const lines = readFileSync(path.join(dataDirectory, 'postmaster.pid'), 'utf8').split('\n');
    const pid = Number(lines[0]);
    return Number.isInteger(pid) && pid > 0 ? { pid, ready: lines[7]?.trim() === 'ready' } : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Stops whatever Postgres still runs in a data directory because the stack that started it was killed.
 *
 * @throws {FatalError} where it does not stop
 */
export async function stopLeftover(dataDirectory: string): Promise<void> {
  const pid = readPostmaster(dataDirectory)?.pid;
  if (pid !== undefined && serversIn(dataDirectory).includes(pid)) {
    const gone = () => !serversIn(dataDirectory).includes(pid);
    signal(pid, 'SIGINT');
    if (!(await becomes(gone, FAST_SHUTDOWN_MS))) {
      signal(pid, 'SIGQUIT');
      await becomes(gone, QUIT_MS);
    }
  }
  await endServers(dataDirectory);
}

/**
 * Ends every server process of a data directory at once. For those that outlived their postmaster: they hold its
 * shared memory, and no server starts beside them. To the data it is a crash, and WAL is there for crashes.
 *
 * @throws {FatalError} where one does not end
 */
export async function endServers(dataDirectory: string): Promise<void> {
  const none = () => {
    const pids = serversIn(dataDirectory);
    for (const pid of pids) signal(pid, 'SIGKILL');
    return pids.length === 0;
  };
  if (await becomes(none, QUIT_MS)) return;
  throw new FatalError(`a Postgres of an earlier run does not stop: look for one in ${dataDirectory}`);
}

/**
 * Removes a `postmaster.pid` whose process id has since been given to somebody else. Postgres itself tells a dead
 * process from a live one, and not a stranger from a server: it would refuse to start for as long as that one lives.
 */
export function removeStrangersPidFile(dataDirectory: string): void {
  const pid = readPostmaster(dataDirectory)?.pid;
  if (pid === undefined || !signal(pid, 0) || serversIn(dataDirectory).length > 0) return;
  rmSync(path.join(dataDirectory, 'postmaster.pid'), { force: true });
}

/** The process ids of the servers that run in a data directory; each of them has it as its working directory. */
function serversIn(dataDirectory: string): number[] {
  if (process.platform !== 'linux') return postmasterIn(dataDirectory);
  const directory = resolved(dataDirectory);
  // Must not be compared: another user's process has no working directory that we can see either.
  if (directory === undefined) return [];
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => workingDirectory(pid) === directory && programName(pid) === 'postgres');
}

/** Without /proc only the postmaster can be told, by the `-D` of its command line. */
function postmasterIn(dataDirectory: string): number[] {
  const pid = readPostmaster(dataDirectory)?.pid;
  if (pid === undefined) return [];
  const { stdout } = spawnSync('ps', ['-o', 'command=', '-p', String(pid)], { encoding: 'utf8' });
  return stdout?.includes(`-D ${dataDirectory}`) ? [pid] : [];
}

function resolved(directory: string): string | undefined {
  try {
    return realpathSync(directory);
  } catch {
    return undefined;
  }
}

function workingDirectory(pid: number): string | undefined {
  try {
    return readlinkSync(`/proc/${pid}/cwd`);
  } catch {
    // It has ended since, or is another user's.
    return undefined;
  }
}

function programName(pid: number): string | undefined {
  try {
    return readFileSync(`/proc/${pid}/comm`, 'utf8').trim();
  } catch {
    return undefined;
  }
}

/** @returns whether there is such a process that we may signal; signal 0 only asks */
function signal(pid: number, name: NodeJS.Signals | 0): boolean {
  try {
    return process.kill(pid, name);
  } catch {
    return false;
  }
}

async function becomes(condition: () => boolean, withinMs: number): Promise<boolean> {
  const deadline = Date.now() + withinMs;
  while (!condition()) {
    if (Date.now() > deadline) return false;
    await sleep(POLL_MS);
  }
  return true;
}
