import { spawnSync } from 'node:child_process';
import { readFileSync, readdirSync, readlinkSync, realpathSync, rmSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { FatalError } from '../../src/errors.ts';

/** How long a fast shutdown of a server may take before an immediate one, in milliseconds. */
export const FAST_SHUTDOWN_MS = 20_000;
/** How long an immediate shutdown may take, in milliseconds. */
const QUIT_MS = 5_000;
const POLL_MS = 20;

/** What a server writes about itself into its data directory. */
export interface Postmaster {
  pid: number;
  /** Whether it accepts connections: it has started, and crash recovery is done. */
  ready: boolean;
}

/** Reads `postmaster.pid`, whose eighth line is the state (as `pg_ctl` reads it). */
export function readPostmaster(dataDirectory: string): Postmaster | undefined {
  const content = ifThere(() => readFileSync(path.join(dataDirectory, 'postmaster.pid'), 'utf8'));
  const lines = content?.split('\n') ?? [];
  const pid = Number(lines[0]);
  return Number.isInteger(pid) && pid > 0 ? { pid, ready: lines[7]?.trim() === 'ready' } : undefined;
}

/**
 * Stops a Postgres that still runs in a data directory because the stack that started it was killed.
 *
 * @throws {FatalError} if it does not stop
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
 * Kills all server processes of a data directory. It is for processes that outlive their postmaster: they hold its
 * shared memory, and no other server can start. For the data it is a crash, and the next server recovers from WAL.
 *
 * @throws {FatalError} if one does not end
 */
export async function endServers(dataDirectory: string): Promise<void> {
  const none = () => {
    const pids = serversIn(dataDirectory);
    for (const pid of pids) signal(pid, 'SIGKILL');
    return pids.length === 0;
  };
  if (await becomes(none, QUIT_MS)) return;
  throw new FatalError(
    `a Postgres of an earlier run does not stop: look for processes with the data directory ${dataDirectory}`,
  );
}

/**
 * Removes a `postmaster.pid` whose process id now belongs to another program. Postgres checks only whether the process
 * exists, so it would refuse to start as long as the other program runs.
 */
export function removeStrangersPidFile(dataDirectory: string): void {
  const pid = readPostmaster(dataDirectory)?.pid;
  if (pid === undefined || !signal(pid, 0) || serversIn(dataDirectory).length > 0) return;
  rmSync(path.join(dataDirectory, 'postmaster.pid'), { force: true });
}

/** The process ids of the servers of a data directory. Each has it as its working directory. */
function serversIn(dataDirectory: string): number[] {
  if (process.platform !== 'linux') return postmasterIn(dataDirectory);
  const directory = ifThere(() => realpathSync(dataDirectory));
  // Not to be compared: the working directory of another user's process is undefined as well.
  if (directory === undefined) return [];
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => workingDirectory(pid) === directory && programName(pid) === 'postgres');
}

/** Without /proc only the postmaster can be found, by the `-D` of its command line. */
function postmasterIn(dataDirectory: string): number[] {
  const pid = readPostmaster(dataDirectory)?.pid;
  if (pid === undefined) return [];
  const { stdout } = spawnSync('ps', ['-o', 'command=', '-p', String(pid)], { encoding: 'utf8' });
  return stdout?.includes(`-D ${dataDirectory}`) ? [pid] : [];
}

function workingDirectory(pid: number): string | undefined {
  return ifThere(() => readlinkSync(`/proc/${pid}/cwd`));
}

function programName(pid: number): string | undefined {
  return ifThere(() => readFileSync(`/proc/${pid}/comm`, 'utf8').trim());
}

/** Sends a signal; 0 only asks. Returns whether there is such a process and this user may signal it. */
function signal(pid: number, name: NodeJS.Signals | 0): boolean {
  return ifThere(() => process.kill(pid, name)) ?? false;
}

/** What `read` returns; undefined if the file or process is gone, or belongs to another user. */
function ifThere<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
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
