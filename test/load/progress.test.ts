import { expect, test } from 'vitest';
import { progressLine, reportToTerminal, summaryLine } from '../../src/load/progress.ts';

const PROGRESS = {
  received: 12_345_678,
  redelivered: 0,
  staged: 12_345_000,
  batches: 6_200,
  backlog: 99_999,
};

test.each([200, 80, 60, 40, 20, 10, 1])(
  'the progress line fits into %i columns, whole words and all',
  (columns) => {
    const line = progressLine(PROGRESS, 1_000, columns);
    expect(line.length).toBeLessThan(columns);
    expect(line).not.toMatch(/\s$|…/);
  },
);

test('the narrower the terminal, the less it says, and what is staged last of all', () => {
  const lines = [80, 60, 40, 20].map((columns) => progressLine(PROGRESS, 1_000, columns));
  expect(new Set(lines).size).toBe(4);
  expect(lines.every((line) => line.includes('12345000 staged'))).toBe(true);
});

test('each time the line is drawn over the last one, and at the end there is none', async () => {
  const written: string[] = [];
  const drawn = Promise.withResolvers<void>();
  const report = reportToTerminal({
    columns: 60,
    write: (text: string | Uint8Array) => {
      written.push(String(text));
      if (written.length === 2) drawn.resolve();
      return true;
    },
  });
  report.update(PROGRESS);
  await drawn.promise;
  report.end();
  expect(written.every((text) => text.startsWith('\r\u001B[K') && !text.includes('\n'))).toBe(true);
  expect(written.at(-1)).toBe('\r\u001B[K');
});

test('a summary counts one batch and two batches', () => {
  const summary = {
    received: 1,
    redelivered: 0,
    staged: 1,
    batches: 1,
    released: 0,
    seconds: 1,
    exitCode: 0,
  } as const;
  expect(summaryLine(summary)).toMatch(/1 message in 1 batch,/);
  expect(summaryLine({ ...summary, staged: 2, batches: 2 })).toMatch(/2 messages in 2 batches,/);
});
