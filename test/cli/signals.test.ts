import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { leaveNow, stopSignal } from '../../src/cli/signals.ts';

let handlers: (() => void)[];
const onStop = vi.fn<() => void>();
const onLeave = vi.fn<() => void>();
const exit = vi.fn<() => never>();

beforeEach(() => {
  vi.useFakeTimers();
  handlers = [];
  for (const mock of [onStop, onLeave, exit]) mock.mockClear();
  vi.spyOn(process, 'on').mockImplementation(((_: string, handler: () => void) => {
    handlers.push(handler);
    return process;
  }) as typeof process.on);
  vi.spyOn(process, 'exit').mockImplementation(exit);
});
afterEach(() => {
  vi.restoreAllMocks();
  vi.useRealTimers();
});

/** A signal that comes a second after the one before, to SIGTERM's and SIGINT's handler in turn. */
function signalLater(): void {
  vi.advanceTimersByTime(1_000);
  handlers.reverse()[0]!();
}

const calls = () => [onStop, onLeave, exit].map((mock) => mock.mock.calls.length);

test('the first signal stops, the second leaves, and the third ends the process', () => {
  const signal = stopSignal({ onStop, onLeave });
  expect(handlers).toHaveLength(2);
  signalLater();
  expect([signal.aborted, calls()]).toEqual([true, [1, 0, 0]]);
  signalLater();
  expect(calls()).toEqual([1, 1, 0]);
  signalLater();
  expect(calls()).toEqual([1, 1, 1]);
});

test('a signal that comes twice at the same time is one signal', () => {
  stopSignal({ onStop, onLeave });
  for (const handler of handlers) handler();
  expect(calls()).toEqual([1, 0, 0]);
});

test('a command that cannot leave earlier stops at the first signal, and ignores the others', () => {
  const signal = stopSignal();
  signalLater();
  expect(signal.aborted).toBe(true);
  for (const _ of [1, 2, 3]) signalLater();
  expect(calls()).toEqual([0, 0, 0]);
});

test('a command that has nothing to end leaves at the first signal', () => {
  stopSignal({ onStop: leaveNow });
  signalLater();
  expect(calls()).toEqual([0, 0, 1]);
});
