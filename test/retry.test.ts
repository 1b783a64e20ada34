import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { backoffMs, Throttle } from '../src/retry.ts';

const BACKOFF = { firstMs: 10, ceilingMs: 1_000 };

beforeEach(() => void vi.useFakeTimers());
afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

test('the longest wait doubles with each failure up to the ceiling', () => {
  vi.spyOn(Math, 'random').mockReturnValue(1);
  const waits = Array.from({ length: 9 }, (_, n) => backoffMs(n + 1, BACKOFF));
  expect(waits).toEqual([10, 20, 40, 80, 160, 320, 640, 1_000, 1_000]);
});

test('half of a wait is fixed, and half is random', () => {
  const random = vi.spyOn(Math, 'random').mockReturnValue(0);
  expect(backoffMs(3, BACKOFF)).toBe(20);
  random.mockReturnValue(0.5);
  expect(backoffMs(3, BACKOFF)).toBe(30);
});

test('any number of failures gives a wait that a timer accepts', () => {
  expect(backoffMs(5_000, BACKOFF)).toBeLessThanOrEqual(1_000);
});

test('a throttle passes the same thing once in its interval', () => {
  const throttle = new Throttle(1_000);
  expect([throttle.pass(), throttle.pass()]).toEqual([true, false]);
  vi.advanceTimersByTime(999);
  expect(throttle.pass()).toBe(false);
  vi.advanceTimersByTime(1);
  expect([throttle.pass(), throttle.pass()]).toEqual([true, false]);
});

test('a throttle passes what is new at once', () => {
  const throttle = new Throttle(1_000);
  expect(['a', 'a', 'b', 'b', 'a'].map((what) => throttle.pass(what))).toEqual([
    true,
    false,
    true,
    false,
    true,
  ]);
});

test('to ask a throttle whether something is due does not pass it', () => {
  const throttle = new Throttle(1_000);
  expect([throttle.isDue(), throttle.isDue(), throttle.pass(), throttle.isDue()]).toEqual([
    true,
    true,
    true,
    false,
  ]);
});
