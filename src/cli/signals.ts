/**
 * Ctrl-C under npm may arrive twice: from the terminal, and forwarded by npm. Only what comes later than this, in
 * milliseconds, is a person who does not want to wait.
 */
const SAME_SIGNAL_MS = 500;

/**
 * Turns the first SIGTERM or SIGINT into an abort signal, for an orderly end. A second one ends the process at once
 * with exit code 1: what it had in hand comes back by itself.
 *
 * @param onStop called at the first signal, to tell a person what is being waited for
 */
export function stopSignal(onStop: () => void): AbortSignal {
  const controller = new AbortController();
  let stoppedAt = 0;
  const onSignal = (): void => {
    if (!controller.signal.aborted) {
      stoppedAt = performance.now();
      onStop();
      controller.abort();
    } else if (performance.now() - stoppedAt > SAME_SIGNAL_MS) {
      process.exit(1);
    }
  };
  process.on('SIGTERM', onSignal);
  process.on('SIGINT', onSignal);
  return controller.signal;
}
