/**
 * Turns SIGTERM and SIGINT into an abort signal. A second one, or the end of the grace period, ends the process at
 * once with exit code 1: what it had in hand comes back by itself.
 *
 * @param options.graceSeconds how long an orderly end may take
 * @param options.onStop called at the first signal, to tell a person what is being waited for
 */
export function stopSignal(options: {
  graceSeconds: number;
  onStop: () => void;
  onGiveUp: () => void;
}): AbortSignal {
  const controller = new AbortController();
  const onSignal = () => {
    if (controller.signal.aborted) process.exit(1);
    controller.abort();
    options.onStop();
    setTimeout(() => {
      options.onGiveUp();
      process.exit(1);
    }, options.graceSeconds * 1_000).unref();
  };
  process.on('SIGTERM', onSignal);
  process.on('SIGINT', onSignal);
  return controller.signal;
}
