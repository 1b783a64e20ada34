/**
 * Canaries go through every path of the pipeline, those of success and those of failure, while Postgres logs all that
 * it can; then everything that is logged, printed, backed up or kept is searched for them.
 *
 * TEST_LEAKS=all crashes Postgres more often. TEST_POSTGRES=16 takes the oldest major version.
 */
import { afterAll, beforeAll, expect, test } from 'vitest';
import * as journeys from '../support/leaks/journeys.ts';
import * as keys from '../support/leaks/key-journeys.ts';
import { PLANS, scan } from '../support/leaks/scan.ts';
import { createWorld, type World } from '../support/leaks/world.ts';

const CRASHES = process.env['TEST_LEAKS'] === 'all' ? 8 : 1;

let world: World;
beforeAll(async () => {
  world = await createWorld();
});
afterAll(() => world.stop());

test('messages are loaded and masked, SQS failing now and then', async () => {
  await journeys.load(world);
  expect(world.queue.waiting).toBe(0);
});

test('every kind of odd body is masked or quarantined, twice', async () => {
  await keys.keepDataKeys(world, 'at first');
  await journeys.stageEverything(world);
  expect(await journeys.allDone(world)).toBe(true);
});

test('masking that fails with values in its error tells a code', async () => {
  expect(await journeys.failWithValues(world)).toEqual(['none', 'none', '53100', 'none', 'none']);
});

test('masking is cut off', async () => {
  expect(await journeys.interrupt(world)).toEqual({
    timeout: '57014',
    lock: '55P03',
    terminated: '57P01',
    deadlock: '40P01 none',
  });
});

test('the database is sealed, unsealed with wrong keys and the right one, and rewrapped', async () => {
  expect(await keys.sealAndUnseal(world)).toEqual({
    sealedByHand: 0,
    sealed: 'ML001',
    wrong: 'ML002',
    short: 'ML002',
    worker: 1,
    other: 'ML003',
    rewrapped: 0,
    former: 'ML002',
    old: 'ML002',
  });
});

test('settings are wrong', async () => {
  expect(await keys.wrongSettings(world)).toEqual([2, 2, 2, 2, 2, 'SettingError']);
});

test('values are revealed, and refused', async () => {
  expect(await keys.reveal(world)).toEqual({
    unapproved: 'ML105',
    uncommitted: 'ML103',
    swapped: 'ML004',
    sealed: 'ML001',
  });
});

test('messages are replayed and a user is erased', async () => {
  await keys.replayAndErase(world);
  expect(await journeys.count(world, 'masking.erasures where values_erased = 2 and bodies_erased = 1')).toBe(
    1,
  );
});

test('all keys are rotated and the old ones destroyed', async () => {
  await keys.rotate(world);
  expect(await journeys.count(world, `masking.keys where state = 'destroyed'`)).toBe(5);
});

test('Postgres is killed in the middle', async () => {
  await journeys.crash(world, CRASHES);
  expect(await journeys.allDone(world)).toBe(true);
});

let found: string[];

test('after all of that, no canary is anywhere but where it may be', async () => {
  found = await scan(world);
  expect(found.filter((each) => !each.startsWith(PLANS))).toEqual([]);
  expect(world.canaries.all.size).toBeGreaterThan(500);
  expect(world.witness.seen.activity).toBeGreaterThan(50);
  expect(world.witness.seen.commandLines).toBeGreaterThan(20);
  expect(world.witness.seen.errors).toBeGreaterThan(10);
});

test('nor in the plans that auto_explain logs', () => {
  expect(found.filter((each) => each.startsWith(PLANS))).toEqual([]);
});
