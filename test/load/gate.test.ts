import { afterEach, expect, test, vi } from 'vitest';
import { FatalError } from '../../src/errors.ts';
import { Gate, type Backlog } from '../../src/load/gate.ts';
import { recordingLog } from './loader.ts';

afterEach(() => void vi.useRealTimers());

function gateWith(backlog: Backlog, inMemory = 0, giveUpAfterMs?: number) {
  const { log, lines } = recordingLog();
  const asked = { times: 0 };
  const stager = { rows: inMemory, batchesStaged: 0 };
  const gate = new Gate({
    readBacklog: async () => {
      asked.times += 1;
      return { ...backlog };
    },
    stager,
    maxRows: 100,
    maxAgeSeconds: 150,
    giveUpAfterMs,
    log,
  });
  /** Asks again at once, as after a batch was staged. */
  const look = () => {
    stager.batchesStaged += 1;
    return gate.isOpen();
  };
  return { gate, look, lines, asked, backlog, stager };
}

test('it is open below the ceilings', async () => {
  expect(await gateWith({ rows: 99, oldestSeconds: 149 }).look()).toBe(true);
});

test('it is shut at the ceiling of rows, those in memory included', async () => {
  expect(await gateWith({ rows: 100, oldestSeconds: 0 }).look()).toBe(false);
  expect(await gateWith({ rows: 60, oldestSeconds: 0 }, 40).look()).toBe(false);
});

test('it is shut when rows have waited too long, and not when there are none', async () => {
  expect(await gateWith({ rows: 1, oldestSeconds: 151 }).look()).toBe(false);
  expect(await gateWith({ rows: 0, oldestSeconds: 151 }).look()).toBe(true);
});

test('it opens again only when the backlog has shrunk, and tells both once', async () => {
  const { look, lines, backlog } = gateWith({ rows: 100, oldestSeconds: 0 });
  await look();
  await look();
  backlog.rows = 95;
  expect(await look()).toBe(false);
  backlog.rows = 89;
  expect(await look()).toBe(true);
  await look();
  expect(lines().map(({ level }) => level)).toEqual([40, 30]);
});

test('a gate that opens and shuts all the time does not fill the log', async () => {
  const { look, lines, backlog } = gateWith({ rows: 0, oldestSeconds: 0 });
  for (const rows of [100, 0, 100, 0, 100, 0]) {
    backlog.rows = rows;
    await look();
  }
  expect(lines()).toHaveLength(2);
});

test('the database is asked once for everybody who wants to know at the same time, and not again at once', async () => {
  const { gate, asked } = gateWith({ rows: 0, oldestSeconds: 0 });
  await Promise.all([gate.isOpen(), gate.isOpen(), gate.isOpen()]);
  await gate.isOpen();
  expect(asked.times).toBe(1);
});

test('while it stays shut it says so again every minute', async () => {
  vi.useFakeTimers();
  const { look, lines } = gateWith({ rows: 100, oldestSeconds: 0 });
  for (let second = 0; second < 130; second += 1) {
    await look();
    vi.advanceTimersByTime(1_000);
  }
  expect(lines().map(({ level }) => level)).toEqual([40, 40, 40]);
});

test('it gives up when nothing was masked in the time that it has, and not while rows become fewer', async () => {
  vi.useFakeTimers();
  const { look, backlog } = gateWith({ rows: 200, oldestSeconds: 0 }, 0, 60_000);
  for (let n = 0; n < 5; n += 1) {
    backlog.rows -= 1;
    expect(await look()).toBe(false);
    vi.advanceTimersByTime(59_000);
  }
  vi.advanceTimersByTime(1_000);
  await expect(look()).rejects.toThrow(FatalError);
});

test('a backlog that was read while a batch was staged is read again', async () => {
  const { gate, asked, stager } = gateWith({ rows: 0, oldestSeconds: 0 });
  const reading = gate.isOpen();
  stager.batchesStaged += 1;
  await reading;
  await gate.isOpen();
  expect(asked.times).toBe(2);
  await gate.isOpen();
  expect(asked.times).toBe(2);
});
