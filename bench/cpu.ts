import { readdirSync, readFileSync } from 'node:fs';

/** The unit of times in Linux's /proc, on every architecture. */
const TICKS_PER_SECOND = 100;

/**
 * The CPU time of a process and its descendants so far, in seconds.
 *
 * @returns NaN if there is no /proc
 */
export function cpuSeconds(pid: number): number {
  try {
    const all = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
    const times = all.map((name) => timesOf(Number(name)));
    return secondsOf(
      pid,
      times.filter((time) => time !== undefined),
    );
  } catch {
    return Number.NaN;
  }
}

interface Times {
  pid: number;
  parent: number;
  /** CPU time of the process and of its children that have ended. */
  seconds: number;
}

function secondsOf(pid: number, all: readonly Times[]): number {
  const own = all.find((times) => times.pid === pid);
  if (own === undefined) return Number.NaN;
  const children = all.filter(({ parent }) => parent === pid);
  return children.reduce((sum, child) => sum + secondsOf(child.pid, all), own.seconds);
}

/** @see proc_pid_stat(5) */
function timesOf(pid: number): Times | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The second field is a name in parentheses, which may contain spaces and parentheses.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const ticks = fields.slice(11, 15).reduce((sum, field) => sum + Number(field), 0);
    return { pid, parent: Number(fields[1]), seconds: ticks / TICKS_PER_SECOND };
  } catch {
    // The process has ended.
    return undefined;
  }
}
