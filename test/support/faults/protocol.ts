/** A process tells the runner that it has reached an armed point. */
export interface PointMessage {
  at: string;
}

/** The runner tells a process to stop at a point, to continue from it, or to shift its clock by milliseconds. */
export type RunnerMessage = { arm: string } | { go: string } | { shift: number };

/** How many characters of a process's output are kept, for the report of a run that fails. */
export const OUTPUT_KEPT = 20_000;

/** The maximum time until work resumes after everything runs again, in milliseconds: the guarantee of crash safety. */
export const RECOVERY_LIMIT_MS = 60_000;

/** The visibility timeout of all messages, in seconds, whatever the loader requests. Short, for many redeliveries. */
export const TRUE_VISIBILITY_SECONDS = 8;

/** A fault did not take effect, or a check that belongs to it failed. */
export class FaultError extends Error {
  override name = 'FaultError';
}
