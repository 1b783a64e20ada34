import { cpus } from 'node:os';

/** What a benchmark found. */
export interface Result {
  /** What is run, how often and on what data, in a sentence. */
  how: string;
  /** What was measured, with its unit in its name, in the order of importance. */
  figures: Record<string, number>;
  /** The ratios that are promised. */
  targets: Target[];
  /** What a plot is made of. */
  series?: Series[];
  /** The server's version. */
  postgres: string;
}

/** A promise, and what came of it. */
export interface Target {
  /** What is compared. */
  measure: string;
  value: number;
  atLeast?: number;
  atMost?: number;
}

/** Points of a plot, and what its axes say. */
export interface Series {
  title: string;
  x: string;
  y: string;
  /** For each line its points, as [x, y]. */
  lines: Record<string, [x: number, y: number][]>;
  /** Whether the horizontal axis is logarithmic. */
  logarithmic?: boolean;
}

export type Benchmark = () => Promise<Result>;

export const CORES = cpus().length;

export function isMet({ value, atLeast = 0, atMost = Infinity }: Target): boolean {
  return value >= atLeast && value <= atMost;
}

/** For people: what is promised. */
export function promiseOf({ atLeast, atMost }: Target): string {
  return atLeast === undefined ? `at most ${atMost}` : `at least ${atLeast}`;
}

/**
 * Runs contenders in turns, so that whatever else the machine does is shared out: a first round that counts for
 * nothing, then `rounds` that do. Every other round goes the other way about.
 *
 * @param contenders each does its work once and returns its figure (a duration, a rate) of that turn
 * @returns the figures of each, round by round
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

/** The middle of the ratios of two contenders, each pair from the same round. */
export function medianRatio(numerators: readonly number[], denominators: readonly number[]): number {
  return median(numerators.map((numerator, round) => numerator / denominators[round]!));
}

/** The middle of some numbers. */
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

/** For people: two digits after the point, three where nothing comes before it, none where they say nothing. */
export function rounded(value: number): number {
  if (value >= 1_000) return Math.round(value);
  return Number(value.toFixed(value < 1 ? 3 : 2));
}
