/** Waits that something else may end. */
import { setTimeout as sleep } from 'node:timers/promises';

/**
 * Waits, or ends early when `signal` is aborted.
 *
 * @param ms how long to wait, in milliseconds
 */
export async function pause(ms: number, signal?: AbortSignal | undefined): Promise<void> {
  await sleep(ms, undefined, { signal }).catch(() => {});
}

/**
 * Limits how long to wait for work. Work that takes longer goes on, and its outcome is ignored.
 *
 * @param ms how long to wait, in milliseconds
 * @returns what the work returns; undefined if it fails or takes longer
 */
export async function within<T>(ms: number, work: Promise<T>): Promise<T | undefined> {
  const settled = new AbortController();
  const tooLate = pause(ms, settled.signal).then(() => undefined);
  return Promise.race([work.catch(() => undefined), tooLate]).finally(() => settled.abort());
}

/**
 * Calls `act` when `signal` is aborted, or at once if it is aborted already.
 *
 * @param end if it is aborted first, `act` is not called any more
 */
export function onAbort(signal: AbortSignal, act: () => void, end?: AbortSignal): void {
  if (signal.aborted) act();
  else signal.addEventListener('abort', () => act(), { once: true, ...(end && { signal: end }) });
}

/** Settles when `signal` is aborted. Each call adds a listener, so call it once for a signal that lives long. */
export function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => onAbort(signal, resolve));
}
