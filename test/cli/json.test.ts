import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { childEnvironment } from '../../local/environment.ts';
import { filesOf, read } from '../house/files.ts';
import { ROOT, run } from './commands.ts';
import { startWorld, type World } from './world.ts';

let world: World;
beforeAll(async () => {
  world = await startWorld();
});
afterAll(() => world.stop());

/** In place of batches that wait: one that has for a while. */
const waiting = () =>
  world.db.superuser.query(
    `insert into staging.batches (batch_id, rows, staged_at) values (gen_random_uuid(), 1, now() - interval '1 h')`,
  );

test('npm run --silent status -- --json prints JSON and nothing else, with ages to a tenth of a second', async () => {
  await waiting();
  const { stdout, stderr } = await promisify(execFile)('npm', ['run', '--silent', 'status', '--', '--json'], {
    cwd: ROOT,
    env: childEnvironment({ ...world.right('auditor') }),
  });
  const { staged } = JSON.parse(stdout) as { staged: { oldestUnmaskedSeconds: number } };
  expect(staged.oldestUnmaskedSeconds).toBeGreaterThan(3_600);
  expect(String(staged.oldestUnmaskedSeconds)).toMatch(/^\d+(\.\d)?$/);
  expect(stderr).toBe('');
});

test.each([
  ['status', ['--json'], 'auditor'],
  ['send', ['--count', '3', '--json'], 'loader'],
  ['load', ['--json'], 'loader'],
] as const)('%s with %j prints JSON and nothing else, without npm', async (command, args, login) => {
  await world.db.superuser.query('delete from staging.batches');
  const { code, stdout } = await run(command, [...args], { variables: world.right(login) });
  expect(code).toBe(0);
  const { seconds = 0 } = JSON.parse(stdout) as { seconds?: number };
  expect(String(seconds)).toMatch(/^\d+(\.\d{1,3})?$/);
});

test('no page shows a form of --json that npm puts its banner before', () => {
  const pages = [
    { name: 'README.md', text: read('README.md') },
    ...filesOf('docs', '.md'),
    ...filesOf('src', '.ts'),
  ];
  const forms = pages.flatMap(({ name, text }) =>
    [...text.matchAll(/npm run [^`\n]*--json/g)].map(([form]) => `${name}: ${form}`),
  );
  expect(forms).not.toHaveLength(0);
  expect(forms.filter((form) => !/: npm run --silent \w+ -- /.test(form))).toEqual([]);
});
