import { existsSync } from 'node:fs';
import path from 'node:path';
import { expect, test } from 'vitest';
import { filesOf, read } from '../house/files.ts';

const PAGES = [{ name: 'README.md', text: read('README.md') }, ...filesOf('docs', '.md')];

/** As GitHub makes them of headings. */
function anchorsOf(text: string): string[] {
  return [...text.matchAll(/^#+ (.+)$/gm)].map((match) =>
    match[1]!
      .toLowerCase()
      .replaceAll(/[^\p{L}\p{N} _-]/gu, '')
      .replaceAll(' ', '-'),
  );
}

test.each(PAGES.map(({ name, text }) => [name, text]))(
  'every link of %s leads to a file and a heading that are there',
  (name, text) => {
    const links = [...text.matchAll(/\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)/g)];
    const broken = links.filter(([, file, anchor]) => {
      const target = file === '' ? name : path.join(path.dirname(name), file!);
      if (anchor === undefined) return !existsSync(target);
      return !anchorsOf(read(target)).includes(anchor);
    });
    expect(broken.map(([link]) => link)).toEqual([]);
  },
);

test('every test that the threat model names is there', () => {
  const model = read('docs/threat-model.md');
  const files = [...model.matchAll(/`(test\/[^`]+)`/g)].map((match) => match[1]!);
  expect(files.length).toBeGreaterThan(20);
  expect(files.filter((file) => !existsSync(file))).toEqual([]);

  const titles = [...model.matchAll(/`(test\/[^`]+)`: ([^|)]+?)(?: \||\))/g)];
  expect(titles.length).toBeGreaterThan(5);
  expect(titles.filter(([, file, title]) => !read(file!).includes(title!)).map(([match]) => match)).toEqual(
    [],
  );
});
