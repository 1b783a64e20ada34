import { expect, test } from 'vitest';
import { HAS_TERMINAL, maskedLogins, onTerminal } from './shipped.ts';

/** The commands that a help lists. */
function commandsIn(help: string): string[] {
  const section = help.split('\nCommands:\n')[1]?.split('\n\n')[0] ?? '';
  return [...section.matchAll(/^ {2}([a-z]+) /gm)]
    .map((match) => match[1]!)
    .filter((name) => name !== 'help');
}

/** The help of a command and of all below it, in a width. */
async function helps(width: number, path: string[] = []): Promise<{ path: string[]; help: string }[]> {
  const { code, stdout, stderr } = await maskedLogins([...path, '--help'], { COLUMNS: String(width) });
  expect({ path, code, stderr }).toEqual({ path, code: 0, stderr: '' });
  const below = await Promise.all(commandsIn(stdout).map((name) => helps(width, [...path, name])));
  return [{ path, help: stdout }, ...below.flat()];
}

test.each([60, 80])('every help fits %i columns, and ends with examples of its command', async (width) => {
  const all = await helps(width);
  const paths = all.map(({ path }) => path.join(' '));
  expect(paths).toEqual(
    expect.arrayContaining([
      'migrate',
      'load',
      'worker',
      'status',
      'keys rotate',
      'keys destroy',
      'complete',
    ]),
  );
  for (const { path, help } of all) {
    // A command's usage is never broken, so that it can be searched for.
    const broken = help.split('\n').slice(width === 60 ? 1 : 0);
    expect({ path, long: broken.filter((line) => line.length > width) }).toEqual({ path, long: [] });
    expect(help.split('\nExamples:\n')[1]).toContain(['masked-logins', ...path].join(' '));
  }
});

test.each([['keys'], ['keys', 'rotate'], ['load']])(
  'help %s shows the same as its --help',
  async (...path) => {
    const [last] = path.slice(-1);
    const { stdout } = await maskedLogins([...path.slice(0, -1), 'help', last!]);
    expect(stdout).toBe((await maskedLogins([...path, '--help'])).stdout);
  },
);

test.skipIf(!HAS_TERMINAL)('on a terminal, help is as wide as the terminal', async () => {
  const widths = [60, 120].map(async (columns) => {
    const lines = await onTerminal(columns, ['keys', '--help'], { COLUMNS: '200' });
    return Math.max(...lines.map((line) => line.length));
  });
  const [narrow, wide] = await Promise.all(widths);
  expect(narrow).toBeLessThanOrEqual(60);
  expect(wide).toBeGreaterThan(80);
});

test.each([
  [[]],
  [['nope']],
  [['--bogus']],
  [['help', 'nope']],
  [['keys']],
  [['keys', 'nope']],
  [['keys', 'help', 'nope']],
  [['keys', 'rotate', '--bogus']],
  [['keys', 'rotate', '--purpose', 'other']],
  [['keys', 'rewrap']],
  [['status', 'nope']],
  [['complete', 'nope']],
])('%j is a wrong call, told in one line, with exit code 2', async (args) => {
  const { code, stdout, stderr } = await maskedLogins(args);
  expect([code, stdout]).toEqual([2, '']);
  expect(stderr).toMatch(/^[^\n]*--help[^\n]*\n$/);
});
