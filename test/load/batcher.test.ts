import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { Batcher } from '../../src/load/batcher.ts';
import { messages } from './messages.ts';

const LIMITS = { rows: 5, bytes: 100, ms: 250 };
const onReady = vi.fn<() => void>();
let batcher: Batcher;

beforeEach(() => {
  vi.useFakeTimers();
  onReady.mockClear();
  batcher = new Batcher(LIMITS, onReady);
});
afterEach(() => vi.useRealTimers());

test('a batch is ready when it has as many rows as it may', () => {
  batcher.add(messages(4));
  expect(batcher.take()).toBeUndefined();
  batcher.add(messages(1));
  expect(onReady).toHaveBeenCalledOnce();
  expect(batcher.take()?.messages).toHaveLength(5);
});

test('a batch is ready before it would have more bytes than it may', () => {
  batcher.add(messages(3, 40));
  expect(batcher.take()).toMatchObject({ bytes: 80 });
  expect(batcher.waiting).toMatchObject([{ bytes: 40 }]);
});

test('a message longer than a batch may be is a batch of its own', () => {
  batcher.add([...messages(1, 10), ...messages(1, 500), ...messages(1, 10)]);
  expect([batcher.take(), batcher.take()].map((batch) => batch?.bytes)).toEqual([10, 500]);
});

test('a batch is ready when its first message has waited long enough, whatever came after', () => {
  batcher.add(messages(1));
  vi.advanceTimersByTime(200);
  batcher.add(messages(1));
  expect(batcher.take()).toBeUndefined();
  vi.advanceTimersByTime(50);
  expect(onReady).toHaveBeenCalledOnce();
  expect(batcher.take()?.messages).toHaveLength(2);
});

test('a batch that is due grows until somebody takes it', () => {
  batcher.add(messages(1));
  vi.advanceTimersByTime(250);
  batcher.add(messages(2));
  expect(batcher.take()?.messages).toHaveLength(3);
});

test('a flush makes ready what there is', () => {
  batcher.add(messages(2));
  batcher.flush();
  expect(batcher.take()?.messages).toHaveLength(2);
  batcher.flush();
  expect(batcher.take()).toBeUndefined();
});

test('every batch has an id of its own', () => {
  batcher.add(messages(10));
  expect(new Set(batcher.waiting.map(({ id }) => id)).size).toBe(2);
});
