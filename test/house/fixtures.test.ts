import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { filesOf, read } from './files.ts';

const FIXTURES = filesOf('migrations/fixtures', '.sql').filter(
  ({ name }) => path.basename(name) !== 'all.sql',
);
const FUNCTIONS = FIXTURES.filter(({ name }) => name.includes('/functions/'));
const RELATIONS = FIXTURES.filter(({ name }) => /\/(?:tables|types)\//.test(name));
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

test('every table, view and type says what it is for, in a comment of the file and of the database', () => {
  for (const { text } of RELATIONS) {
    expect(text.startsWith('-- ')).toBe(true);
    expect(text).toMatch(/^comment on (table|view|type) /m);
  }
});

test('a table, view or type has a file of its name', () => {
  for (const { name, text } of RELATIONS) {
    const made =
      /^ *create (?:unlogged table if not exists|table if not exists|or replace view|type) (\S+)/m.exec(
        codeOf(text),
      );
    expect(made?.[1]).toBe(path.basename(name, '.sql'));
  }
});

/** Other functions of ours that a function calls. */
const CALLS = new Map(
  FUNCTIONS.map(({ name, text }) => {
    const own = path.basename(name, '.sql');
    const body = codeOf(text).slice(codeOf(text).indexOf('as $$'));
    const called = new Set(body.match(/\w+\.\w+(?=\()/g));
    return [
      own,
      FUNCTIONS.map((each) => path.basename(each.name, '.sql')).filter((other) => called.has(other)),
    ] as const;
  }),
);
/** What gives keys, values or bodies in the clear. */
const IN_THE_CLEAR = new Set([
  'masking.unwrapped',
  'masking.data_key',
  'masking.active_key',
  'masking.decrypt_values',
  'masking.decrypt_bodies',
]);
const handles = (text: string) => /\b(?:m\.body|new\.bodies|new\.kek)\b/.test(codeOf(text));
const settingsOf = (text: string) => text.slice(text.indexOf('create or replace'), text.indexOf('as $$'));

function reaches(name: string, seen = new Set<string>()): boolean {
  if (seen.has(name)) return false;
  seen.add(name);
  const text = FUNCTIONS.find((each) => path.basename(each.name, '.sql') === name)!.text;
  return IN_THE_CLEAR.has(name) || handles(text) || CALLS.get(name)!.some((other) => reaches(other, seen));
}

test('every function that callers enter and that comes to values, bodies or keys keeps them in memory, whatever work_mem they have', () => {
  const entered = FUNCTIONS.filter(({ text }) => settingsOf(text).includes('security definer')).filter(
    ({ name }) => reaches(path.basename(name, '.sql')),
  );
  expect(entered.length).toBeGreaterThan(8);
  const spilling = entered.filter(({ text }) => !/^set work_mem = '256MB'$/m.test(settingsOf(text)));
  expect(spilling.map(({ name }) => name)).toEqual([]);
});

test('every function that holds values, bodies or keys has plans without them', () => {
  const holding = FUNCTIONS.filter(
    ({ name, text }) =>
      CALLS.get(path.basename(name, '.sql'))!.some((other) => IN_THE_CLEAR.has(other)) || handles(text),
  );
  expect(holding.length).toBeGreaterThan(10);
  const planned = holding.filter(
    ({ text }) => !/^set plan_cache_mode = force_generic_plan$/m.test(settingsOf(text)),
  );
  expect(planned.map(({ name }) => name)).toEqual([]);
});

test('every function sets its search path, unless it is to be inlined', () => {
  const without = FUNCTIONS.filter(
    ({ text }) => !/^set search_path = pg_catalog, pg_temp$/m.test(settingsOf(text)),
  );
  // Callers of these have set theirs.
  const callable = without.filter(
    ({ text }) =>
      !/^language sql$/m.test(settingsOf(text)) ||
      /security definer/.test(text) ||
      /^grant execute/m.test(text),
  );
  expect(callable.map(({ name }) => name)).toEqual([]);
});

test('no text in quotes has a backslash: what it stands for depends on standard_conforming_strings', () => {
  const files = filesOf('migrations', '.sql').filter(({ name }) => !name.includes('/committed/'));
  const escaping = files.filter(({ text }) => {
    const texts = text.replaceAll(/--.*$/gm, '').match(/'[^']*'/g) ?? [];
    return texts.some((each) => each.includes('\\')) || /(?<![\w'])e'/i.test(text.replaceAll(/--.*$/gm, ''));
  });
  expect(files.length).toBeGreaterThan(80);
  expect(escaping.map(({ name }) => name)).toEqual([]);
});

test('nothing is compared with null by =, which transform_null_equals takes as is null', () => {
  const comparing = FIXTURES.filter(({ text }) => {
    const clauses = codeOf(text).match(/\b(?:where|and|or|when|if|on)\b[^;]*?(?:(?<!:)=|<>) null\b/gi) ?? [];
    return clauses.some((clause) => !/\bset\b/.test(clause));
  });
  expect(comparing.map(({ name }) => name)).toEqual([]);
});

test('no name of a schema or a table is compared as a text that quote_all_identifiers changes', () => {
  const files = filesOf('migrations', '.sql').filter(({ name }) => !name.includes('/committed/'));
  const casting = files.filter(({ text }) => /::reg\w+::text/.test(codeOf(text)));
  expect(casting.map(({ name }) => name)).toEqual([]);
});

test('keywords are in lower case', () => {
  expect(FIXTURES.filter(({ text }) => KEYWORDS.test(codeOf(text))).map(({ name }) => name)).toEqual([]);
});

test('no file has a tab or a CR, and each ends in a newline', () => {
  const untidy = FIXTURES.filter(({ text }) => /[\t\r]/.test(text) || !text.endsWith('\n'));
  expect(untidy.map(({ name }) => name)).toEqual([]);
});
