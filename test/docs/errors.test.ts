import { expect, test } from 'vitest';
import { filesOf, read } from '../house/files.ts';

// test/house/source.test.ts checks that the table has exactly the codes that SQL raises.
const listed = [...read('docs/errors.md').matchAll(/^\| `(ML\w{3})` \|/gm)].map((match) => match[1]!);
const codesIn = (text: string): string[] => text.match(/\bML\d{3}\b/g) ?? [];

test('docs/errors.md lists each SQLSTATE once, in order', () => {
  expect(listed.length).toBeGreaterThan(20);
  expect(listed).toEqual([...new Set(listed)].sort());
});

test('every SQLSTATE that a page or the source mentions is listed', () => {
  const files = [
    ...filesOf('docs', '.md'),
    ...filesOf('src', '.ts'),
    ...filesOf('migrations/fixtures', '.sql'),
  ];
  const unknown = files.flatMap(({ name, text }) =>
    codesIn(text)
      .filter((code) => !listed.includes(code))
      .map((code) => `${name}: ${code}`),
  );
  expect(unknown).toEqual([]);
});
