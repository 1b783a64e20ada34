import { afterEach, expect, test, vi } from 'vitest';
import { FatalError } from '../../src/errors.ts';
import { Health } from '../../src/load/health.ts';
import { recordingLog } from './loader.ts';

afterEach(() => void vi.useRealTimers());

function healthOf(fatal = false, giveUpAfterMs?: number) {
  const pauses: number[] = [];
  const { log, lines } = recordingLog();
  const pause = async (ms: number) => void pauses.push(ms);
  const explain = () => ({ text: 'what it is', fatal });
  const health = new Health({ name: 'it', ceilingMs: 1_000, explain, giveUpAfterMs, log, pause });
  return { health, pauses, lines };
}

const LOST = Object.assign(new Error('x'), { code: 'ECONNRESET' });

test('waits begin at 10 ms, double, and stop at the ceiling; half of each is random', async () => {
  const { health, pauses } = healthOf();
  for (let n = 0; n < 12; n += 1) await health.failed(LOST);
  const longest = [10, 20, 40, 80, 160, 320, 640, 1_000, 1_000, 1_000, 1_000, 1_000];
  expect(pauses).toHaveLength(12);
  expect(pauses.every((ms, n) => ms <= longest[n]! && ms >= longest[n]! / 2)).toBe(true);
});

test('a success takes the wait back to the beginning', async () => {
  const { health, pauses } = healthOf();
  for (let n = 0; n < 6; n += 1) await health.failed(LOST);
  expect(health.failing).toBe(true);
  health.succeeded();
  expect(health.failing).toBe(false);
  await health.failed(LOST);
  expect(pauses.at(-1)).toBeLessThanOrEqual(10);
});

test('a row of failures is told once, and so is its end', async () => {
  const { health, lines } = healthOf();
  for (let n = 0; n < 6; n += 1) await health.failed(LOST);
  health.succeeded();
  health.succeeded();
  expect(lines().map(({ level, cause }) => [level, cause])).toEqual([
    [40, 'what it is'],
    [30, undefined],
  ]);
});

test('before anything has succeeded, what no retry heals ends it at once', async () => {
  const { health } = healthOf(true);
  await expect(health.failed(LOST)).rejects.toThrow(FatalError);
});

test('after a success, it ends only when that comes again and again', async () => {
  const { health, pauses } = healthOf(true);
  health.succeeded();
  await expect(
    (async () => {
      for (;;) await health.failed(LOST);
    })(),
  ).rejects.toThrow(FatalError);
  expect(pauses.length).toBeGreaterThanOrEqual(5);
});

const levels = (lines: Record<string, unknown>[]) => lines.map(({ level }) => level);

test('while it fails it says so again every 30 seconds, with attempts and seconds, also of an attempt that hangs', async () => {
  vi.useFakeTimers();
  const { health, lines } = healthOf();
  await health.failed(LOST);
  await health.failed(LOST);
  vi.advanceTimersByTime(65_000);
  expect(levels(lines())).toEqual([40, 40, 40]);
  expect(lines().at(-1)).toMatchObject({ attempts: 2, seconds: 60, cause: 'what it is' });
  health.succeeded();
  vi.advanceTimersByTime(65_000);
  expect(levels(lines())).toEqual([40, 40, 40, 30]);
});

test('when nothing more is asked of it, it says nothing more', async () => {
  vi.useFakeTimers();
  const { health, lines } = healthOf();
  await health.failed(LOST);
  health.end();
  vi.advanceTimersByTime(65_000);
  expect(lines()).toHaveLength(1);
});

test('it gives up after the time that it has, waits no longer than that, and names the setting', async () => {
  vi.useFakeTimers();
  const { health, pauses } = healthOf(false, 2_000);
  for (let n = 0; n < 10; n += 1) await health.failed(LOST);
  vi.advanceTimersByTime(1_990);
  await health.failed(LOST);
  expect(pauses.at(-1)).toBeLessThanOrEqual(10);
  vi.advanceTimersByTime(10);
  const given = await health.failed(LOST).catch((error: unknown) => error);
  expect(given).toBeInstanceOf(FatalError);
  expect((given as Error).message).toContain('LOAD_RETRY_TIMEOUT_SECONDS');
});

test('a success in between gives it all its time again', async () => {
  vi.useFakeTimers();
  const { health } = healthOf(false, 2_000);
  await health.failed(LOST);
  vi.advanceTimersByTime(1_500);
  health.succeeded();
  await health.failed(LOST);
  vi.advanceTimersByTime(1_500);
  await expect(health.failed(LOST)).resolves.toBeUndefined();
});

test('without such a time it never gives up', async () => {
  vi.useFakeTimers();
  const { health } = healthOf();
  await health.failed(LOST);
  vi.advanceTimersByTime(86_400_000);
  await expect(health.failed(LOST)).resolves.toBeUndefined();
});
