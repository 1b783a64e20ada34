import { existsSync } from 'node:fs';
import path from 'node:path';
import { expect, test } from 'vitest';
import { TASKS as ALL_TASKS } from '../../tasks/index.ts';
import { filesOf, read, ROOT } from './files.ts';

const SRC = filesOf('src', '.ts');
const TASKS = filesOf('tasks', '.ts').filter(({ name }) => name !== 'tasks/index.ts');
const LOCAL = filesOf('local', '.ts');
const CODE = [...SRC, ...LOCAL, ...filesOf('tasks', '.ts')];
const MAX_LINES = 300;

/** The files of the repository that a file imports, as paths from the root. */
function importsOf({ name, text }: { name: string; text: string }): string[] {
  return [...text.matchAll(/(?:from|import)\s*\(?\s*'(\.[^']+)'/g)].map((match) =>
    path.join(path.dirname(name), match[1]!),
  );
}

test('source files and their imports are found', () => {
  expect(SRC.length).toBeGreaterThan(30);
  expect(TASKS.length).toBeGreaterThanOrEqual(4);
  expect(SRC.flatMap(importsOf)).toContain('src/database/copy.ts');
});

test('only src/config.ts reads the environment, and local/environment.ts for code that does not ship', () => {
  const readers = CODE.filter(({ text }) => /process\.env|process\[['"]env/.test(text));
  expect(readers.map(({ name }) => name)).toEqual(['src/config.ts', 'local/environment.ts']);
});

test.each([
  ['src/', ['local/', 'test/', 'bench/']],
  ['tasks/', ['local/', 'test/', 'bench/', 'src/cli/', 'src/load/']],
  ['src/load/', ['src/cli/', 'src/work/', 'tasks/']],
  ['src/work/', ['src/cli/', 'src/load/', 'tasks/']],
  ['src/database/', ['src/cli/', 'src/load/', 'src/work/', 'tasks/', 'src/queue/']],
  ['src/queue/', ['src/cli/', 'src/load/', 'src/work/', 'tasks/', 'src/database/']],
  ['local/', ['test/', 'bench/']],
])('%s imports nothing from %j', (from, forbidden) => {
  const files = CODE.filter(({ name }) => name.startsWith(from));
  expect(files).not.toHaveLength(0);
  const crossings = files.flatMap((file) =>
    importsOf(file)
      .filter((target) => forbidden.some((prefix) => target.startsWith(prefix)))
      .map((target) => `${file.name} imports ${target}`),
  );
  expect(crossings).toEqual([]);
});

test('code that ships imports no development dependency', () => {
  const { devDependencies } = JSON.parse(read('package.json')) as { devDependencies: object };
  const shipped = CODE.filter(({ name }) => !name.startsWith('local/'));
  const imported = shipped.flatMap(({ name, text }) =>
    [...text.matchAll(/^(?:import|export)(?! type) .*from '([^.'][^']*)'/gm)].map((match) => ({
      name,
      from: match[1]!
        .split('/')
        .slice(0, match[1]!.startsWith('@') ? 2 : 1)
        .join('/'),
    })),
  );
  expect(imported.map(({ from }) => from)).toContain('pg');
  expect(imported.filter(({ from }) => from in devDependencies)).toEqual([]);
});

test('exports are named, except that a task has only a default export', () => {
  expect(
    [...SRC, ...LOCAL].filter(({ text }) => /^export default/m.test(text)).map(({ name }) => name),
  ).toEqual([]);
  for (const { text } of TASKS) {
    expect(text).toMatch(/^export default task\(/m);
    expect(text).not.toMatch(/^export (?!default)/m);
  }
});

test('a task has the name of its file, and a worker has every task', () => {
  for (const { name, text } of TASKS) expect(text).toContain(`name: '${path.basename(name, '.ts')}'`);
  const files = TASKS.map(({ name }) => path.basename(name, '.ts'));
  expect(ALL_TASKS.map(({ name }) => name).sort()).toEqual(files);
});

test(`no file is longer than ${MAX_LINES} lines`, () => {
  const files = [...CODE, ...filesOf('migrations/fixtures', '.sql'), ...filesOf('test', '.ts')];
  const long = files.filter(({ text }) => text.trimEnd().split('\n').length > MAX_LINES);
  expect(long.map(({ name }) => name)).toEqual([]);
});

test('no line of a comment is longer than 120 characters', () => {
  const comments = CODE.flatMap(({ name, text }) =>
    text
      .split('\n')
      .filter((line) => /^\s*(\/\/|\/\*|\*)/.test(line))
      .map((line) => `${name}: ${line}`),
  );
  expect(comments.length).toBeGreaterThan(100);
  expect(comments.filter((line) => line.length > line.indexOf(': ') + 2 + 120)).toEqual([]);
});

test('a path that code builds from its own directory leads to something', () => {
  const code = [...CODE, ...filesOf('bench', '.ts'), ...filesOf('test', '.ts')];
  const paths = code.flatMap(({ name, text }) =>
    [...text.matchAll(/import\.meta\.dirname, '([^'$]+)'/g)].map((match) =>
      path.join(path.dirname(name), match[1]!),
    ),
  );
  expect(paths.length).toBeGreaterThan(10);
  expect(paths.filter((target) => !existsSync(path.join(ROOT, target)))).toEqual([]);
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

test('docs/errors.md lists exactly the SQLSTATEs of class ML that SQL raises', () => {
  const sql = [
    ...filesOf('migrations/fixtures', '.sql').map(({ text }) => text),
    read('migrations/before/1-roles.sql'),
    read('migrations/before/2-database.sql'),
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
