import { expect, test } from 'vitest';
import { FatalError } from '../../src/errors.ts';
import type { Batch } from '../../src/load/batcher.ts';
import { Health } from '../../src/load/health.ts';
import { LANES, Stager } from '../../src/load/stager.ts';
import { Stop } from '../../src/load/stop.ts';
import { recordingLog } from './loader.ts';
import { messages } from './messages.ts';

/** Batches of five rows; none is due before the test is over. */
const LIMITS = { rows: 5, bytes: 1_000, ms: 600_000 };
const LONG = 600_000;

/** A stager whose attempts to stage end when the test says so. */
function stagerWith(fatal = false) {
  const stop = new Stop();
  const attempts: { batch: Batch; succeed: () => void; fail: () => void }[] = [];
  const staged: Batch[] = [];
  const health = new Health({
    name: 'it',
    ceilingMs: 1,
    explain: () => ({ text: 'what it is', fatal }),
    log: recordingLog().log,
    pause: async () => {},
  });
  const stager = new Stager({
    limits: LIMITS,
    stage: (batch) => {
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      attempts.push({ batch, succeed: resolve, fail: () => reject(new Error('x')) });
      return promise;
    },
    health,
    stop,
    onStaged: (batch) => void staged.push(batch),
  });
  return { stager, stop, health, attempts, staged };
}

/** Lets everything happen that waits for nothing but promises. */
const settled = () => new Promise<void>((resolve) => void setImmediate(resolve));

test('it stages a batch as soon as the batch is full, and as many at once as there are lanes', async () => {
  const { stager, attempts } = stagerWith();
  stager.add(messages(4));
  expect(attempts).toHaveLength(0);
  stager.add(messages(16));
  expect(attempts).toHaveLength(LANES);
  attempts[0]!.succeed();
  await settled();
  expect(attempts).toHaveLength(LANES + 1);
});

test('it counts what was received and is not staged', async () => {
  const { stager, attempts, staged } = stagerWith();
  stager.add(messages(12));
  expect(stager.rows).toBe(12);
  expect(stager.unstaged.map((batch) => batch.messages.length)).toEqual([5, 5, 2]);
  attempts[1]!.succeed();
  await settled();
  expect(stager.rows).toBe(7);
  expect(stager.batchesStaged).toBe(1);
  expect(staged).toEqual([attempts[1]!.batch]);
});

test.each([
  ['rows', 1],
  ['bytes', 1_000],
])('it has room until it holds a batch for each lane, by %s', (_, bytes) => {
  const { stager } = stagerWith();
  const most = bytes === 1 ? LANES * LIMITS.rows : LANES;
  stager.add(messages(most - 1, bytes));
  expect(stager.hasRoom).toBe(true);
  stager.add(messages(1, bytes));
  expect(stager.hasRoom).toBe(false);
});

test('a wait for room ends when a batch is staged, not before, and the next one waits again', async () => {
  const { stager, attempts } = stagerWith();
  stager.add(messages(10));
  let waits = 0;
  const wait = () => stager.waitForRoom(LONG).then(() => (waits += 1));
  const first = wait();
  await settled();
  expect(waits).toBe(0);
  attempts[0]!.succeed();
  await first;
  const second = wait();
  await settled();
  expect(waits).toBe(1);
  attempts[1]!.succeed();
  await second;
});

test('a wait for room ends when the loader stops', async () => {
  const { stager, stop } = stagerWith();
  const waiting = stager.waitForRoom(LONG);
  stop.request();
  await expect(waiting).resolves.toBeUndefined();
});

test('a batch that fails is tried again, the same one, until it is staged', async () => {
  const { stager, attempts, health } = stagerWith();
  stager.add(messages(5));
  for (const n of [0, 1]) {
    attempts[n]!.fail();
    await settled();
    expect(stager.isRetrying).toBe(true);
  }
  expect(health.failing).toBe(true);
  attempts[2]!.succeed();
  await settled();
  expect(new Set(attempts.map(({ batch }) => batch.id)).size).toBe(1);
  expect([stager.isRetrying, health.failing, stager.rows]).toEqual([false, false, 0]);
});

test('an error that no retry can fix stops the loader, and the batch stays unstaged', async () => {
  const { stager, attempts, stop } = stagerWith(true);
  stager.add(messages(5));
  attempts[0]!.fail();
  await stager.finish();
  expect(stop.isRequested).toBe(true);
  expect(stop.failure).toBeInstanceOf(FatalError);
  expect(stager.rows).toBe(5);
});

test('at its end it stages what was received, a batch that is not full included', async () => {
  const { stager, attempts } = stagerWith();
  stager.add(messages(7));
  const finished = stager.finish();
  expect(attempts.map(({ batch }) => batch.messages.length)).toEqual([5, 2]);
  for (const { succeed } of attempts) succeed();
  await finished;
  expect(stager.unstaged).toEqual([]);
});

test('after a stop, a batch that fails once is not tried again, and stays unstaged', async () => {
  const { stager, attempts, stop } = stagerWith();
  stager.add(messages(10));
  stop.request();
  const finished = stager.finish();
  attempts[0]!.succeed();
  attempts[1]!.fail();
  await finished;
  expect(attempts).toHaveLength(2);
  expect(stager.unstaged).toEqual([attempts[1]!.batch]);
  expect(stop.failure).toBeUndefined();
});
