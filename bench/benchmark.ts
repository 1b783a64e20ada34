import { cpus } from 'node:os';

/** The result of a benchmark. */
export interface Result {
  /** One sentence that says what was run, how often and on which data. */
  how: string;
  /** Measurements by name, the most important first. The name includes the unit. */
  figures: Record<string, number>;
  /** The measurements that have a target. */
  targets: Target[];
  /** The plots. */
  series?: Series[];
  /** The server's version. */
  postgres: string;
}

/** A target, and the value that was measured. */
export interface Target {
  /** What is measured. */
  measure: string;
  value: number;
  atLeast?: number;
  atMost?: number;
}

/** The lines of a plot, and the labels of its axes. */
export interface Series {
  title: string;
  x: string;
  y: string;
  /** The points of each line, as [x, y], by the name of the line. */
  lines: Record<string, [x: number, y: number][]>;
  /** Whether the horizontal axis is logarithmic. */
  logarithmic?: boolean;
}

export type Benchmark = () => Promise<Result>;

export const CORES = cpus().length;

export function isMet({ value, atLeast = 0, atMost = Infinity }: Target): boolean {
  return value >= atLeast && value <= atMost;
}

/** The target as text, such as `at least 0.7`. */
export function targetText({ atLeast, atMost }: Target): string {
  return atLeast === undefined ? `at most ${atMost}` : `at least ${atLeast}`;
}

/**
 * Runs contenders in turns, so that other load on the machine affects all of them. There is one warm-up round that is
 * not counted, and then `rounds` that are, alternating the order each round.
 *
 * @param contenders each does its work once and returns the figure of that turn (a duration or a rate)
 * @returns the figures of each contender, one for each round
 */
export async function inTurns<Name extends string>(
  rounds: number,
  contenders: Record<Name, () => Promise<number>>,
): Promise<Record<Name, number[]>> {
  const names = Object.keys(contenders) as Name[];
  const figures = Object.fromEntries(names.map((name) => [name, [] as number[]])) as Record<Name, number[]>;
  for (let round = 0; round <= rounds; round += 1) {
    for (const name of round % 2 === 0 ? names : names.toReversed()) {
      const figure = await contenders[name]();
      if (round > 0) figures[name].push(figure);
    }
  }
  return figures;
}

/** The median of the rounds' ratios of two contenders. */
export function medianRatio(numerators: readonly number[], denominators: readonly number[]): number {
  return median(numerators.map((numerator, round) => numerator / denominators[round]!));
}

export function median(numbers: readonly number[]): number {
  const sorted = numbers.toSorted((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** How long a call takes, in milliseconds. */
export async function timed(call: () => Promise<unknown>): Promise<number> {
  const startedAt = performance.now();
  await call();
  return performance.now() - startedAt;
}

/** Rounds to an integer from 1000 on, to three decimals below 1, and to two decimals in between. */
export function rounded(value: number): number {
  if (value >= 1_000) return Math.round(value);
  return Number(value.toFixed(value < 1 ? 3 : 2));
}
