/** What a benchmark found. */
export interface Result {
  /** What was measured, with its unit in its name, in the order of importance. */
  figures: Record<string, number>;
  /** Whether the figures are what they have to be. */
  accepted: boolean;
  /** The server's version. */
  postgres: string;
}

export type Benchmark = () => Promise<Result>;

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

export function rounded(value: number): number {
  return Number(value.toFixed(2));
}
