import { readdirSync, readFileSync } from 'node:fs';

/** Of Linux's /proc, on every architecture there is. */
const TICKS_A_SECOND = 100;

/**
 * CPU time that a process has had so far, with all that it has started, in seconds.
 *
 * @returns NaN where there is no /proc
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
  /** Its own and that of its children that have ended, in seconds. */
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
    // The name in parentheses may hold anything; it is the second field.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const ticks = fields.slice(11, 15).reduce((sum, field) => sum + Number(field), 0);
    return { pid, parent: Number(fields[1]), seconds: ticks / TICKS_A_SECOND };
  } catch {
    // It has ended meanwhile.
    return undefined;
  }
}
