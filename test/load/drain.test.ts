import { expect, test } from 'vitest';
import { Drain } from '../../src/load/drain.ts';

const NOTHING = { visible: 0, inFlight: 0, delayed: 0 };

test('it takes three empty polls in a row and the counts', async () => {
  const drain = new Drain(async () => NOTHING);
  expect(await drain.isOverAfter(0)).toBe(false);
  expect(await drain.isOverAfter(0)).toBe(false);
  expect(await drain.isOverAfter(1)).toBe(false);
  expect(await drain.isOverAfter(0)).toBe(false);
  expect(await drain.isOverAfter(0)).toBe(false);
  expect(await drain.isOverAfter(0)).toBe(true);
});

test.each([
  { visible: 1, delayed: 0 },
  { visible: 0, delayed: 1 },
])('it is not over while the queue counts %o', async (counts) => {
  const drain = new Drain(async () => ({ ...NOTHING, ...counts }));
  for (let polls = 0; polls < 10; polls += 1) expect(await drain.isOverAfter(0)).toBe(false);
});

test('messages that somebody else has in flight do not count', async () => {
  const drain = new Drain(async () => ({ ...NOTHING, inFlight: 7 }));
  await drain.isOverAfter(0);
  await drain.isOverAfter(0);
  expect(await drain.isOverAfter(0)).toBe(true);
});

test('while paused the counts alone decide, three times in a row', async () => {
  const counts = [0, 0, 3, 0, 0, 0];
  const drain = new Drain(async () => ({ ...NOTHING, visible: counts.shift() ?? 0 }));
  const answers = [];
  for (let looks = 0; looks < 6; looks += 1) answers.push(await drain.isOverWhilePaused());
  expect(answers).toEqual([false, false, false, false, false, true]);
});
