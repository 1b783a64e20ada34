import { existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { filesOf } from '../house/files.ts';
import { makeTestDirectory } from '../support/test-directory.ts';
import { copyCheckout, environmentOn, run } from './places.ts';

const ROOT = path.join(import.meta.dirname, '../..');
const env = environmentOn(process.execPath);

/** A checkout with all dependencies, in which to pack: this one is never touched. */
let checkout: string;
beforeEach(() => {
  checkout = makeTestDirectory();
  copyCheckout(checkout);
  symlinkSync(path.join(ROOT, 'node_modules'), path.join(checkout, 'node_modules'));
});
afterEach(() => rmSync(checkout, { recursive: true, force: true }));

const at = (file: string) => path.join(checkout, file);

/** Packs, and returns the files of the package. */
async function pack(): Promise<string[]> {
  const { code, stdout, stderr } = await run('npm', ['pack', '--silent', '--json'], { cwd: checkout, env });
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const [{ files }] = JSON.parse(stdout) as [{ files: { path: string }[] }];
  return files.map((file) => file.path);
}

/** Leaves what an interrupted packing could leave: compiled code, here of a command that fails. */
function leaveStaleCode(): void {
  mkdirSync(at('dist/src/cli'), { recursive: true });
  writeFileSync(at('dist/src/cli/main.js'), 'process.exit(3)');
  writeFileSync(at('dist/src/removed.js'), '');
}

test('the package holds what runs, its migrations and its papers, and nothing else', async () => {
  const files = await pack();
  const compiled = [...filesOf('src', '.ts'), ...filesOf('tasks', '.ts')];
  const migrations = [...filesOf('migrations/before', '.sql'), ...filesOf('migrations/committed', '.sql')];
  const expected = [
    '.gmrc',
    'CHANGELOG.md',
    'LICENSE',
    'README.md',
    'package.json',
    'bin/masked-logins.js',
    'bin/requirements.js',
    ...compiled.map(({ name }) => `dist/${name.replace(/\.ts$/, '.js')}`),
    ...migrations.map(({ name }) => name),
  ];
  expect(files.sort()).toEqual(expected.sort());
});

test('packing leaves no compiled code in the checkout, and packs none that was left there', async () => {
  leaveStaleCode();
  expect(await pack()).not.toContain('dist/src/removed.js');
  expect(existsSync(at('dist'))).toBe(false);
});

test('packing that fails for an error of types leaves no compiled code either', async () => {
  leaveStaleCode();
  writeFileSync(at('src/broken.ts'), 'export const broken: string = 1;\n');
  const { code } = await run('npm', ['pack'], { cwd: checkout, env });
  expect(code).not.toBe(0);
  expect(existsSync(at('dist'))).toBe(false);
});

test('a checkout never runs compiled code that was left there', async () => {
  leaveStaleCode();
  const { code, stdout } = await run('node', ['bin/masked-logins.js', '--version'], { cwd: checkout, env });
  const { version } = JSON.parse(readFileSync(at('package.json'), 'utf8')) as { version: string };
  expect([code, stdout]).toEqual([0, `${version}\n`]);
});
