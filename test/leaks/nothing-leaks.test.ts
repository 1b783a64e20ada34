/**
 * Sends canaries through every path of the pipeline, successful and failing, while Postgres logs as much as possible.
 * Then searches for them in everything that is logged, printed, backed up or stored.
 *
 * TEST_LEAKS=all crashes Postgres more often. TEST_POSTGRES=16 uses the oldest supported major version.
 */
import { afterAll, beforeAll, expect, test } from 'vitest';
import * as messages from '../support/leaks/message-scenarios.ts';
import * as keys from '../support/leaks/key-scenarios.ts';
import { PLANS, scan } from '../support/leaks/scan.ts';
import { createWorld, type World } from '../support/leaks/world.ts';

const CRASHES = process.env['TEST_LEAKS'] === 'all' ? 8 : 1;

let world: World;
beforeAll(async () => {
  world = await createWorld();
});
afterAll(() => world.stop());

test('messages are loaded and masked, while some requests to SQS fail', async () => {
  await messages.load(world);
  expect(world.queue.waiting).toBe(0);
});

test('unusual bodies of every kind are masked or quarantined, and delivered again', async () => {
  await keys.addDataKeys(world, 'at first');
  await messages.stageUnusualBodies(world);
  expect(await messages.allDone(world)).toBe(true);
});

test('an error of masking that contains values reaches the caller only as an SQLSTATE, if at all', async () => {
  expect(await messages.failWithValues(world)).toEqual(['none', 'none', '53100', 'none', 'none']);
});

test('masking is ended by a statement timeout, a lock timeout, a termination and a deadlock', async () => {
  expect(await messages.interrupt(world)).toEqual({
    timeout: '57014',
    lock: '55P03',
    terminated: '57P01',
    deadlock: '40P01 none',
  });
});

test('the database is sealed, unsealed with wrong keys and with the right key, and its keys are rewrapped', async () => {
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

test('commands are run with wrong settings', async () => {
  expect(await keys.wrongSettings(world)).toEqual([2, 2, 2, 2, 2, 'SettingError']);
});

test('values are revealed, and reveals are refused', async () => {
  expect(await keys.reveal(world)).toEqual({
    unapproved: 'ML105',
    uncommitted: 'ML103',
    swapped: 'ML004',
    sealed: 'ML001',
  });
});

test('messages are replayed and a user is erased', async () => {
  await keys.replayAndErase(world);
  expect(await messages.count(world, 'masking.erasures where values_erased = 2 and bodies_erased = 1')).toBe(
    1,
  );
});

test('all keys are rotated, and the old keys are destroyed', async () => {
  await keys.rotate(world);
  expect(await messages.count(world, `masking.keys where state = 'destroyed'`)).toBe(5);
});

test('Postgres is killed during loading and masking', async () => {
  await messages.crash(world, CRASHES);
  expect(await messages.allDone(world)).toBe(true);
});

let found: string[];

test('after all of that, no canary is in a place where it must not be', async () => {
  found = await scan(world);
  expect(found.filter((each) => !each.startsWith(PLANS))).toEqual([]);
  expect(world.canaries.all.size).toBeGreaterThan(500);
  expect(world.recorder.seen.activity).toBeGreaterThan(50);
  expect(world.recorder.seen.commandLines).toBeGreaterThan(20);
  expect(world.recorder.seen.errors).toBeGreaterThan(10);
});

test('no canary is in the plans that auto_explain logs', () => {
  expect(found.filter((each) => each.startsWith(PLANS))).toEqual([]);
});
