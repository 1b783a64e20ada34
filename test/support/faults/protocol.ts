/** What a process says to the runner when it has come to a point that was armed. */
export interface PointMessage {
  at: string;
}

/** What the runner says to a process: stop at a point, go on from it, or take the time to be another (milliseconds). */
export type RunnerMessage = { arm: string } | { go: string } | { shift: number };

/** Kept in memory for people to read when a run fails: the end of what a process wrote. */
export const OUTPUT_KEPT = 20_000;

/** The longest that work may take to go on once everything runs again: invariant I8. */
export const RECOVERY_LIMIT_MS = 60_000;

/** The emulator hides messages this long, in seconds, whatever the loader asks for: short, so that they come back often. */
export const TRUE_VISIBILITY_SECONDS = 8;

/** What went wrong in a fault's own doing: it never struck, or what it looked at was not as it should be. */
export class FaultError extends Error {
  override name = 'FaultError';
}
