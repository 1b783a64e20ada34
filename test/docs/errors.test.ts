import { expect, test } from 'vitest';
import { filesOf, read } from '../house/files.ts';

const raised = new Set(
  [...filesOf('migrations/fixtures', '.sql'), { text: read('migrations/database.sql') }].flatMap(({ text }) =>
    [...text.matchAll(/errcode = '(ML\w{3})'/g)].map((match) => match[1]!),
  ),
);
const documented = [...read('docs/errors.md').matchAll(/^\| `(ML\w{3})` \|/gm)].map((match) => match[1]!);

test('docs/errors.md lists every SQLSTATE that is raised, once, and no other', () => {
  expect(raised.size).toBeGreaterThan(20);
  expect(documented).toEqual([...raised].sort());
});

test('every SQLSTATE that the programs tell apart is in docs/errors.md', () => {
  const told = [...read('src/errors.ts').matchAll(/'(ML\w{3})'/g)].map((match) => match[1]!);
  expect(told.filter((code) => !documented.includes(code))).toEqual([]);
});
