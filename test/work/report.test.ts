import { execFile } from 'node:child_process';
import path from 'node:path';
import { expect, test } from 'vitest';
import { describeResidue } from '../../src/work/clear-staging.ts';
import { onceLine, onceProblems } from '../../src/work/report.ts';

const DONE = {
  batches: 1,
  messages: 1,
  loaded: 1,
  duplicates: 0,
  quarantined: 0,
  failed: 0,
  residue: undefined,
};
const HELD = { bodies: 12, oldestSeconds: 31, slotSeconds: 40, heldBy: [4711, 0] };

test('one is not many', () => {
  expect(onceLine(DONE)).toMatch(/\b1 message\b.*\b1 batch\b/);
  expect(onceLine({ ...DONE, batches: 2, messages: 3 })).toMatch(/\b3 messages\b.*\b2 batches\b/);
  expect(onceProblems({ ...DONE, failed: 1 }, false)).toEqual([expect.stringMatching(/^1 job run\b/)]);
  expect(onceProblems({ ...DONE, failed: 2 }, false)).toEqual([expect.stringMatching(/^2 job runs\b/)]);
});

test('a summary without a problem has none, and each problem is one line', () => {
  expect(onceProblems(DONE, false)).toEqual([]);
  const problems = onceProblems({ ...DONE, failed: 1, residue: HELD }, true);
  expect(problems).toHaveLength(3);
  expect(problems.join('')).not.toContain('\n');
});

test('what stays on the disk is said with how much, since when, and who holds it', () => {
  expect(describeResidue(HELD)).toMatch(/\b12\b.*\b31 s\b.*\b4711\b.*pg_prepared_xacts/);
});

test('in a terminal, a line of the log is one line, whatever is attached to it', async () => {
  const script = `
    process.stderr.isTTY = true;
    const { createLogger } = await import('./src/log.ts');
    createLogger('info').info({ batch_id: 'b', rows: 1, deleted: 1, refused: 0 }, 'masked and acknowledged');`;
  const stderr = await new Promise<string>((resolve) => {
    execFile(
      process.execPath,
      ['--input-type=module', '-e', script],
      { cwd: path.join(import.meta.dirname, '../..') },
      (_error, _stdout, text) => resolve(text),
    );
  });
  expect(stderr.trim().split('\n')).toHaveLength(1);
  expect(stderr).toContain('rows');
});
