import { execFileSync, spawnSync } from 'node:child_process';
import { expect, test } from 'vitest';
import { childEnvironment } from '../../local/environment.ts';
import { read } from '../house/files.ts';
import { COMMANDS, complaints, OLD, ROOT, run } from './commands.ts';

const NAMES = [...COMMANDS.keys()];
const NEEDED = (JSON.parse(read('package.json')) as { engines: { node: string } }).engines.node.replace(
  '>=',
  '',
);

// In place of a Node that is too old, which not every machine has: it lacks the same.
test.each(NAMES)(
  '%s on a Node that runs no TypeScript says in one line which Node it needs',
  async (name) => {
    const { code, stdout, stderr } = await run(name, ['--help'], { nodeOptions: ['--no-strip-types'] });
    expect([code, stdout]).toEqual([1, '']);
    expect(complaints(stderr)).toEqual([expect.stringContaining(`Node ${NEEDED}`)]);
  },
);

test.skipIf(OLD === undefined).each(NAMES)('%s on an old Node says which it is', async (name) => {
  const { code, stderr } = await run(name, [], { node: OLD! });
  expect(code).toBe(1);
  expect(complaints(stderr)).toEqual([expect.stringMatching(`Node ${NEEDED}.*v\\d`)]);
});

test('without a command, or with one that is none, it lists the commands and ends with 2', () => {
  for (const args of [[], ['nope'], ['--bogus'], ['../local/demo']]) {
    const { status, stdout, stderr } = spawnSync(process.execPath, ['bin/masked-logins.js', ...args], {
      cwd: ROOT,
      encoding: 'utf8',
    });
    expect([status, stdout]).toEqual([2, '']);
    expect(complaints(stderr)).toEqual([expect.stringContaining('worker')]);
  }
});

test('it runs from any directory', () => {
  const help = execFileSync(process.execPath, [`${ROOT}/bin/masked-logins.js`, 'load', '--help'], {
    cwd: '/',
  });
  expect(String(help)).toContain('--follow');
});

// Tells nothing where npm runs on a new Node. No package is fetched, and none is installed.
test('npm ci complains of nothing, whatever Node npm runs on', () => {
  const npm = process.env['npm_execpath'];
  const [program, args] = npm === undefined ? ['npm', []] : [OLD ?? process.execPath, [npm]];
  const { status, stderr } = spawnSync(
    program,
    [...args, 'ci', '--dry-run', '--offline', '--ignore-scripts'],
    {
      cwd: ROOT,
      encoding: 'utf8',
      env: childEnvironment({}),
    },
  );
  expect([status, stderr]).toEqual([0, '']);
});
