import { Throttle } from '../retry.ts';

/** What shells report for a command that Ctrl-C ended. */
export const EXIT_INTERRUPTED = 130;

/**
 * Signals within this time are one signal, in milliseconds: under npm, Ctrl-C may arrive twice, from the terminal and
 * from npm. A later one is from a person who does not want to wait.
 */
const SAME_SIGNAL_MS = 500;

export interface SignalSteps {
  /** Called at the first signal, before the abort. */
  onStop?: () => void;
  /** Called at the second signal. The third one ends the process. Without it, only the first signal has an effect. */
  onLeave?: () => void;
}

/**
 * Turns the first SIGTERM or SIGINT into an abort, so that the process ends in an orderly way.
 *
 * @returns aborted at the first signal
 */
export function stopSignal({ onStop, onLeave }: SignalSteps = {}): AbortSignal {
  const controller = new AbortController();
  const stop = (): void => {
    onStop?.();
    controller.abort();
  };
  const steps = onLeave === undefined ? [stop] : [stop, onLeave, leaveNow];
  const signals = new Throttle(SAME_SIGNAL_MS);
  for (const signal of ['SIGTERM', 'SIGINT'])
    process.on(signal, () => {
      if (signals.pass()) steps.shift()?.();
    });
  return controller.signal;
}

/** Ends the process at once with exit code 1. What it was doing is done again by the next one. */
export function leaveNow(): never {
  process.exit(1);
}
