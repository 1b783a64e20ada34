import { mkdirSync, readdirSync, rmSync, symlinkSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { OLD } from '../cli/commands.ts';
import { read } from '../house/files.ts';
import { events } from '../support/bodies.ts';
import { startPipeline, storedIds, type Pipeline } from '../support/pipeline.ts';
import { makeTestDirectory } from '../support/test-directory.ts';
import { copyCheckout, environmentOn, install, run, settingsOf, SHIPPED, SLOW_MS } from './places.ts';

const ROOT = path.join(import.meta.dirname, '../..');
const { version, engines } = JSON.parse(read('package.json')) as {
  version: string;
  engines: { node: string };
};

const LOWEST = `${engines.node.replace('>=', '')}.0`;
/** To raise by hand when there is a newer one. */
const NEWEST = '26.10.0';
/** The npm package that has nothing but Node for this machine. */
const NODE = `node-${process.platform}-${process.arch}`;

let pipeline: Pipeline;
let place: string;
const at = (name: string) => path.join(place, name);
const command = () => at('elsewhere/node_modules/.bin/masked-logins');

beforeAll(async () => {
  place = makeTestDirectory();
  for (const name of ['checkout', 'elsewhere', LOWEST, NEWEST]) mkdirSync(at(name));
  copyCheckout(at('checkout'));
  symlinkSync(path.join(ROOT, 'node_modules'), at('checkout/node_modules'));
  pipeline = await startPipeline();
  await install(at('checkout'), ['pack', '--pack-destination', place]);
  const tarball = readdirSync(place).find((name) => name.endsWith('.tgz'));
  // An empty directory: npm makes a package.json there.
  await install(at('elsewhere'), ['install', at(tarball!)]);
  for (const each of [LOWEST, NEWEST]) await install(at(each), ['install', `${NODE}@${each}`]);
}, SLOW_MS);
afterAll(async () => {
  await pipeline.stop();
  rmSync(place, { recursive: true, force: true });
});

test.each([LOWEST, process.versions.node, NEWEST])(
  'installed in an empty directory, each command works on Node %s',
  async (nodeVersion) => {
    const node =
      nodeVersion === process.versions.node
        ? process.execPath
        : at(`${nodeVersion}/node_modules/${NODE}/bin/node`);
    const before = (await storedIds(pipeline.superuser)).loaded.length;
    await pipeline.send(events(3));
    const printed = new Map<string, string>();
    const lines = [...SHIPPED, ['--version', 'worker'], ['keys rotate --help', 'worker']] as const;
    for (const [line, login] of lines) {
      const env = environmentOn(node, settingsOf(pipeline.stack.file, login));
      const { code, stdout, stderr } = await run(command(), line.split(' '), { cwd: '/', env });
      expect({ line, code, warnings: /Warning/.test(stderr) }).toEqual({ line, code: 0, warnings: false });
      printed.set(line, stdout);
    }
    expect(printed.get('--version')).toBe(`${version}\n`);
    expect((await storedIds(pipeline.superuser)).loaded).toHaveLength(before + 3);
  },
  SLOW_MS,
);

test.skipIf(OLD === undefined)('on an older Node it says in one line which Node it needs', async () => {
  const { code, stdout, stderr } = await run(command(), ['status'], { cwd: '/', env: environmentOn(OLD!) });
  expect([code, stdout]).toEqual([1, '']);
  expect(stderr).toMatch(/^[^\n]*Node 22\.18[^\n]*v\d[^\n]*\n$/);
});

test('a wrong call of the installed command is one line and exit code 2', async () => {
  const env = environmentOn(process.execPath);
  for (const args of [[], ['nope'], ['load', '--bogus'], ['status']]) {
    const { code, stdout, stderr } = await run(command(), args, { cwd: '/', env });
    expect([code, stdout]).toEqual([2, '']);
    expect(stderr).toMatch(/^[^\n]+\n$/);
  }
});
