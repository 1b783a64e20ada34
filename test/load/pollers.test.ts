import { expect, test } from 'vitest';
import { runPollers, type Turn } from '../../src/load/pollers.ts';

/** Runs pollers through these turns, and says how many were at it at each. */
async function overlaps(max: number, turns: Turn[]): Promise<number[]> {
  let underWay = 0;
  const seen: number[] = [];
  const rest = [...turns];
  await runPollers({
    max,
    turn: async () => {
      underWay += 1;
      // Everybody who wants to poll has begun by now.
      await new Promise((resolve) => {
        setImmediate(resolve);
      });
      seen.push(underWay);
      underWay -= 1;
      return rest.shift() ?? 'over';
    },
  });
  return seen;
}

const times = (count: number, turn: Turn): Turn[] => Array.from({ length: count }, () => turn);

test('there is one poller while polls come back with little', async () => {
  expect(Math.max(...(await overlaps(8, times(20, 'some'))))).toBe(1);
});

test('polls that come back full bring more pollers, and no more than there may be', async () => {
  expect(Math.max(...(await overlaps(4, times(60, 'full'))))).toBe(4);
});

test('polls that come back empty leave one poller', async () => {
  const seen = await overlaps(4, [...times(30, 'full'), ...times(20, 'empty')]);
  expect(seen.at(-1)).toBe(1);
});

test.each<Turn>(['failed', 'paused'])('a turn that %s leaves one poller', async (turn) => {
  const seen = await overlaps(4, [...times(30, 'full'), ...times(12, turn)]);
  expect(seen.at(-1)).toBe(1);
});

test('when one poller says that it is over, all end after the turn they are in', async () => {
  const seen = await overlaps(4, [...times(30, 'full'), 'over', ...times(10, 'full')]);
  expect(seen.length).toBeLessThanOrEqual(34);
});

test('an error ends all pollers, and is thrown when they have ended', async () => {
  let turns = 0;
  let ended = 0;
  const run = runPollers({
    max: 3,
    turn: async () => {
      turns += 1;
      if (turns > 10) throw new RangeError('x');
      await new Promise((resolve) => {
        setImmediate(resolve);
      });
      ended += 1;
      return 'full';
    },
  });
  await expect(run).rejects.toThrow(RangeError);
  expect(ended).toBe(10);
});
