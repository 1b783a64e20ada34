import { expect, test, vi } from 'vitest';
import { aborted, onAbort, pause, within } from '../src/wait.ts';

/** Far longer than any test runs, in milliseconds. */
const LONG = 600_000;

test('a pause ends when its signal is aborted, and at once if that has happened', async () => {
  const stop = new AbortController();
  const paused = pause(LONG, stop.signal);
  stop.abort();
  await expect(paused).resolves.toBeUndefined();
  await expect(pause(LONG, stop.signal)).resolves.toBeUndefined();
});

test('a pause without a signal ends by itself', async () => {
  await expect(pause(1)).resolves.toBeUndefined();
});

test('work that is done in time returns its result', async () => {
  expect(await within(LONG, Promise.resolve('done'))).toBe('done');
});

test('work that fails or takes too long returns nothing', async () => {
  expect(await within(LONG, Promise.reject(new Error('x')))).toBeUndefined();
  const late = Promise.withResolvers<string>();
  expect(await within(1, late.promise)).toBeUndefined();
  // Its failure is nobody's any more, and ends no process.
  late.reject(new Error('x'));
});

test('what is to happen on abort happens once, also if the signal is aborted already', () => {
  const act = vi.fn<() => void>();
  const stop = new AbortController();
  onAbort(stop.signal, act);
  expect(act).not.toHaveBeenCalled();
  stop.abort();
  stop.abort();
  expect(act).toHaveBeenCalledOnce();
  onAbort(stop.signal, act);
  expect(act).toHaveBeenCalledTimes(2);
});

test('after its end, an abort calls nothing', () => {
  const act = vi.fn<() => void>();
  const stop = new AbortController();
  const end = new AbortController();
  onAbort(stop.signal, act, end.signal);
  end.abort();
  stop.abort();
  expect(act).not.toHaveBeenCalled();
});

test('an abort can be awaited before and after it', async () => {
  const stop = new AbortController();
  const before = aborted(stop.signal);
  stop.abort();
  await expect(before).resolves.toBeUndefined();
  await expect(aborted(stop.signal)).resolves.toBeUndefined();
});
