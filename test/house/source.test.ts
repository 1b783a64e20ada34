import path from 'node:path';
import { expect, test } from 'vitest';
import { filesOf, read } from './files.ts';

const SRC = filesOf('src', '.ts');
const TASKS = filesOf('tasks', '.ts');
const MAX_LINES = 300;

/** The modules of ours that a file imports, from the repository's root. */
function importsOf({ name, text }: { name: string; text: string }): string[] {
  return [...text.matchAll(/(?:from|import)\s*\(?\s*'(\.[^']+)'/g)].map((match) =>
    path.join(path.dirname(name), match[1]!),
  );
}

test('there are files to look at, and their imports are seen', () => {
  expect(SRC.length).toBeGreaterThan(30);
  expect(TASKS.length).toBeGreaterThanOrEqual(4);
  expect(SRC.flatMap(importsOf)).toContain('src/database/copy.ts');
});

test('only src/config.ts reads the environment', () => {
  const readers = [...SRC, ...TASKS].filter(({ text }) => /process\.env|process\[['"]env/.test(text));
  expect(readers.map(({ name }) => name)).toEqual(['src/config.ts']);
});

test.each([
  ['src/load/', ['src/work/', 'tasks/', 'src/local/']],
  ['src/work/', ['src/load/', 'src/local/']],
  ['src/database/', ['src/load/', 'src/work/', 'tasks/', 'src/local/', 'src/queue/']],
  ['src/queue/', ['src/load/', 'src/work/', 'tasks/', 'src/local/', 'src/database/']],
])('%s imports nothing of %j', (from, forbidden) => {
  const crossings = SRC.filter(({ name }) => name.startsWith(from)).flatMap((file) =>
    importsOf(file)
      .filter((target) => forbidden.some((prefix) => target.startsWith(prefix)))
      .map((target) => `${file.name} imports ${target}`),
  );
  expect(crossings).toEqual([]);
});

test('exports have names outside tasks, and a task has none but its default', () => {
  expect(SRC.filter(({ text }) => /^export default/m.test(text)).map(({ name }) => name)).toEqual([]);
  for (const { text } of TASKS) {
    expect(text).toMatch(/^export default task\(/m);
    expect(text).not.toMatch(/^export (?!default)/m);
  }
});

test('a task is named like its file', () => {
  for (const { name, text } of TASKS) expect(text).toContain(`task('${path.basename(name, '.ts')}'`);
});

test(`no file is longer than ${MAX_LINES} lines`, () => {
  const files = [...SRC, ...TASKS, ...filesOf('migrations/fixtures', '.sql'), ...filesOf('test', '.ts')];
  const long = files.filter(({ text }) => text.trimEnd().split('\n').length > MAX_LINES);
  expect(long.map(({ name }) => name)).toEqual([]);
});

test('every dependency has an exact version', () => {
  const { dependencies, devDependencies } = JSON.parse(read('package.json')) as Record<
    string,
    Record<string, string>
  >;
  const versions = Object.entries({ ...dependencies, ...devDependencies });
  expect(versions.length).toBeGreaterThan(20);
  expect(versions.filter(([, version]) => !/^(npm:[\w-]+@)?\d+\.\d+\.\d+(-[\w.]+)?$/.test(version))).toEqual(
    [],
  );
});

test('every SQLSTATE of ours that SQL raises is explained, and nothing else is', () => {
  const sql = [
    ...filesOf('migrations/fixtures', '.sql').map(({ text }) => text),
    read('migrations/roles.sql'),
    read('migrations/database.sql'),
  ];
  const raised = new Set(
    sql.flatMap((text) => [...text.matchAll(/errcode = '(ML\d{3})'/g)].map((match) => match[1])),
  );
  const explained = new Set(
    [...read('docs/errors.md').matchAll(/^\| `(ML\d{3})`/gm)].map((match) => match[1]),
  );
  expect(raised.size).toBeGreaterThan(5);
  expect([...explained].sort()).toEqual([...raised].sort());
});
