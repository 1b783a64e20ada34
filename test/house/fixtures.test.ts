import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { filesOf, read } from './files.ts';

const FIXTURES = filesOf('migrations/fixtures', '.sql').filter(
  ({ name }) => path.basename(name) !== 'all.sql',
);
const FUNCTIONS = FIXTURES.filter(({ name }) => name.includes('/functions/'));
const TABLES = FIXTURES.filter(({ name }) => name.includes('/tables/'));
const KEYWORDS =
  /\b(CREATE|REPLACE|FUNCTION|RETURNS|LANGUAGE|SELECT|INSERT|UPDATE|DELETE|FROM|WHERE|BEGIN|END|GRANT|REVOKE|ALTER|TABLE|RAISE|DECLARE|VALUES|NULL)\b/;

/** What is code: no comments, and no texts in quotes. */
const codeOf = (text: string): string => text.replaceAll(/--.*$/gm, '').replaceAll(/'[^']*'/g, `''`);

test('all.sql includes every file once', () => {
  const included = [...read('migrations/fixtures/all.sql').matchAll(/^--! include (\S+)$/gm)].map(
    (match) => match[1],
  );
  const files = FIXTURES.map(({ name }) => path.relative('migrations/fixtures', name));
  expect(files.length).toBeGreaterThan(30);
  expect(included.sort()).toEqual(files.sort());
});

describe.each(FUNCTIONS.map(({ name, text }) => [path.basename(name, '.sql'), text] as const))(
  '%s',
  (name, text) => {
    const header = text.slice(0, text.indexOf('create or replace'));
    const code = codeOf(text);

    test('begins with its signature, what it does and who calls it', () => {
      expect(header.startsWith(`-- ${name}(`)).toBe(true);
      expect(header).toMatch(/^-- what: {4}\S/m);
      expect(header).toMatch(/^-- called: {2}\S/m);
    });

    test('says what it reads or writes and whether it may run twice where it writes, and what it raises where it raises', () => {
      const writes = /\b(insert into|update|delete from|truncate)\b/.test(code.slice(code.indexOf('as $$')));
      expect(!writes || /^-- writes: /m.test(header)).toBe(true);
      expect(!writes || /^-- twice: /m.test(header)).toBe(true);
      const raised = [...text.matchAll(/errcode = '(\w{5})'/g)].map((match) => match[1]!);
      expect(raised.filter((code) => !header.includes(code))).toEqual([]);
    });

    test('is one function, with its volatility, its comment and its closing to PUBLIC', () => {
      expect(code.match(/create or replace function/g)).toHaveLength(1);
      expect(code).toContain(`create or replace function ${name}(`);
      expect(code).toMatch(/^(volatile|stable|immutable)$/m);
      expect(code).toContain(`comment on function ${name}(`);
      expect(code).toMatch(
        new RegExp(`^revoke all on function ${name.replace('.', '\\.')}\\(.*\\) from public;$`, 'm'),
      );
    });
  },
);

test('every table and view says what it is for, in a comment of the file and of the database', () => {
  for (const { text } of TABLES) {
    expect(text.startsWith('-- ')).toBe(true);
    expect(text).toMatch(/^comment on (table|view) /m);
  }
});

test('a table or view has a file of its name', () => {
  for (const { name, text } of TABLES) {
    const made = /^create (?:unlogged table if not exists|table if not exists|or replace view) (\S+)/m.exec(
      codeOf(text),
    );
    expect(made?.[1]).toBe(path.basename(name, '.sql'));
  }
});

test('keywords are in lower case', () => {
  expect(FIXTURES.filter(({ text }) => KEYWORDS.test(codeOf(text))).map(({ name }) => name)).toEqual([]);
});

test('no file has a tab or a CR, and each ends in a newline', () => {
  const untidy = FIXTURES.filter(({ text }) => /[\t\r]/.test(text) || !text.endsWith('\n'));
  expect(untidy.map(({ name }) => name)).toEqual([]);
});
