import { expect, test } from 'vitest';
import { inLanes } from '../src/lanes.ts';

/** Lets everything happen that waits for nothing but promises. */
const settled = () => new Promise<void>((resolve) => void setImmediate(resolve));

test('every item is worked on once, and no more at the same time than there are lanes', async () => {
  const items = Array.from({ length: 20 }, (_, n) => n);
  const done: number[] = [];
  const seen = { now: 0, most: 0 };
  await inLanes({ lanes: 3, items: items.values() }, async (item) => {
    seen.now += 1;
    seen.most = Math.max(seen.most, seen.now);
    await settled();
    seen.now -= 1;
    done.push(item);
  });
  expect(done.toSorted((a, b) => a - b)).toEqual(items);
  expect(seen.most).toBe(3);
});

test('after an error no further item is begun, and the error is thrown', async () => {
  const begun: number[] = [];
  const work = inLanes({ lanes: 2, items: [1, 2, 3, 4, 5, 6].values() }, async (item) => {
    begun.push(item);
    await settled();
    if (item === 2) throw new RangeError('x');
  });
  await expect(work).rejects.toThrow(RangeError);
  await settled();
  expect(begun.length).toBeLessThanOrEqual(3);
});

test('after an abort no further item is begun', async () => {
  const stop = new AbortController();
  const endless = (function* () {
    for (let n = 0; ; n += 1) yield n;
  })();
  let begun = 0;
  await inLanes({ lanes: 2, items: endless, stop: stop.signal }, async () => {
    begun += 1;
    await settled();
    stop.abort();
  });
  expect(begun).toBe(2);
});
