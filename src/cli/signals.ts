/**
 * Ctrl-C under npm may arrive twice: from the terminal, and forwarded by npm. Only what comes later than this, in
 * milliseconds, is a person who does not want to wait.
 */
const SAME_SIGNAL_MS = 500;

/**
 * Turns the first SIGTERM or SIGINT into an abort signal, for an orderly end. A second one means not to wait; a third
 * ends the process at once with exit code 1. What it had in hand comes back by itself.
 *
 * @param onStop called at the first signal, to tell a person what is being waited for
 * @param onLeave called at the second; without it, the second ends the process
 */
export function stopSignal(onStop: () => void, onLeave: () => void = leaveNow): AbortSignal {
  const controller = new AbortController();
  const steps = [
    () => {
      onStop();
      controller.abort();
    },
    onLeave,
  ];
  let heardAt = Number.NEGATIVE_INFINITY;
  const onSignal = (): void => {
    if (performance.now() - heardAt < SAME_SIGNAL_MS) return;
    heardAt = performance.now();
    (steps.shift() ?? leaveNow)();
  };
  process.on('SIGTERM', onSignal);
  process.on('SIGINT', onSignal);
  return controller.signal;
}

function leaveNow(): never {
  process.exit(1);
}
