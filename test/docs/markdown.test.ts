import { existsSync, globSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { read } from '../house/files.ts';
import { faultsOf } from './markdown.ts';

const PAGES = globSync('**/*.md', { exclude: ['node_modules/**', '.git/**', '.local/**'] }).sort();

test('pages are found', () => {
  expect(PAGES).toEqual(expect.arrayContaining(['README.md', 'CHANGELOG.md', 'docs/README.md']));
});

test.each(PAGES)('%s renders as intended', (name) => {
  expect(faultsOf({ name, text: read(name) })).toEqual([]);
});

describe('the check', () => {
  const long = 'words '.repeat(21).trim();
  const faultless = [
    ['# Title', '## Part', '### Detail', '## Part', '### Detail'],
    ['# Title', '', '| a | b |', '|---|---|', '| 1 | `x \\| y` |', '', 'text'],
    ['- | a | b |', '  |---|---|', '  | 1 | 2 |'],
    ['```', '| not | a | table |', '<NAME>', long, '```'],
    ['a choice: `a|b`', '<!-- | a comment | -->'],
    [`[a link that is too long](https://example.org/${'x'.repeat(120)})`.replaceAll(' ', '-')],
    ['| a |', '|---|', `| ${long} |`],
    [
      '[file](decisions.md), [part](decisions.md#dependencies), [here](#part-of-the-page), [site](https://example.org)',
    ],
    ['[directory](../deploy), ![plot](plots/memory-by-messages-loaded.svg)'],
  ];
  test.each(faultless.map((lines) => [lines.join('\n')]))('finds nothing in %j', (text) => {
    // Adds a heading as the target of a link, unless the sample has headings.
    const page = text.startsWith('# ') ? text : `# Part of the page\n\n${text}\n`;
    expect(faultsOf({ name: 'docs/sample.md', text: page })).toEqual([]);
  });

  const faulty = [
    ['a heading skips a level', 3, ['# Title', '', '### Detail']],
    ['a heading skips a level', 1, ['## Part']],
    ['a heading skips a level', 2, ['# Title', '# Another']],
    ['a row is not part of a table', 6, ['# T', '| a | b |', '|---|---|', '| 1 | 2 |', '', '| 3 | 4 |']],
    ['a row is not part of a table', 3, ['# T', '', '| a | b |']],
    ['a row is not part of a table', 4, ['# T', '', 'text', '| a | b |', 'text']],
    ['a row has more or fewer cells than its header', 4, ['# T', '| a | b |', '|---|---|', '| 1 |']],
    ['a row has more or fewer cells than its header', 4, ['# T', '| a | b |', '|---|---|', '| 1 | 2 | 3 |']],
    [
      'a row has more or fewer cells than its header',
      4,
      ['# T', '| a | b |', '|---|---|', '| 1 | `x | y` |'],
    ],
    [
      'a row has more or fewer cells than its header',
      5,
      ['# T', '| a | b |', '|---|---|', '| 1 | 2 |', 'text'],
    ],
    ['a line is too long', 3, ['# T', 'short', long]],
    ['a line is too long', 1, [`# ${long}`]],
    ['a line is too long', 4, ['# T', '', '- item', `  ${long}`]],
    ['there is HTML', 3, ['# T', '', 'run it with <NAME>']],
    ['there is HTML', 3, ['# T', '', '<details>', '', 'text', '']],
    ['there is HTML', 3, ['# T', '', '<!-- a comment --> **bold**']],
    ['there is HTML', 3, ['# T', '', '<!-- a comment without an end', '', 'text']],
    ['a link has no target', 3, ['# T', '', '[file](missing.md)']],
    ['a link has no target', 3, ['# T', '', '[heading](decisions.md#missing)']],
    ['a link has no target', 3, ['# T', '', '[heading](#missing)']],
    ['a link has no target', 3, ['# T', '', '[part](performance.md#what-helped-2)']],
    ['a link has no target', 3, ['# T', '', '![plot](plots/missing.svg)']],
    ['a link has no target', 3, ['# T', '', '[name]: missing.md']],
    ['a link has no target', 3, ['# T', '', '[text][name]']],
  ] as const;
  test.each(faulty)('finds that %s, at line %i', (fault, line, lines) => {
    expect(faultsOf({ name: 'docs/sample.md', text: lines.join('\n') })).toEqual([
      `${fault} at line ${line}`,
    ]);
  });
});

test('every test that the threat model names exists', () => {
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
