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

/** The SQL without comments and with empty string constants. */
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

    test('has a header with its signature, what it does and who calls it', () => {
      expect(header.startsWith(`-- ${name}(`)).toBe(true);
      expect(header).toMatch(/^-- what: {4}\S/m);
      expect(header).toMatch(/^-- called: {2}\S/m);
    });

    test('documents what it writes, whether it may run twice, and which SQLSTATEs it raises', () => {
      const writes = /\b(insert into|update|delete from|truncate)\b/.test(code.slice(code.indexOf('as $$')));
      expect(!writes || /^-- writes: /m.test(header)).toBe(true);
      expect(!writes || /^-- twice: /m.test(header)).toBe(true);
      const raised = [...text.matchAll(/errcode = '(\w{5})'/g)].map((match) => match[1]!);
      expect(raised.filter((code) => !header.includes(code))).toEqual([]);
    });

    test('defines one function with its volatility and a comment, and revokes it from PUBLIC', () => {
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

test('every table, view and type has a comment in its file and in the database', () => {
  for (const { text } of RELATIONS) {
    expect(text.startsWith('-- ')).toBe(true);
    expect(text).toMatch(/^comment on (table|view|type) /m);
  }
});

test('every table, view and type is in a file of its name', () => {
  for (const { name, text } of RELATIONS) {
    const made =
      /^ *create (?:unlogged table if not exists|table if not exists|or replace view|type) (\S+)/m.exec(
        codeOf(text),
      );
    expect(made?.[1]).toBe(path.basename(name, '.sql'));
  }
});

/** The functions of the project that each function calls. */
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
/** Functions that return keys, values or bodies in the clear. */
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

test('every SECURITY DEFINER function that processes values, bodies or keys sets work_mem, to keep them in memory', () => {
  const definers = FUNCTIONS.filter(({ text }) => settingsOf(text).includes('security definer')).filter(
    ({ name }) => reaches(path.basename(name, '.sql')),
  );
  expect(definers.length).toBeGreaterThan(8);
  const spilling = definers.filter(({ text }) => !/^set work_mem = '256MB'$/m.test(settingsOf(text)));
  expect(spilling.map(({ name }) => name)).toEqual([]);
});

test('every function that holds values, bodies or keys forces generic plans, which do not contain them', () => {
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

test('every function sets its search path, except for SQL functions that are inlined', () => {
  const without = FUNCTIONS.filter(
    ({ text }) => !/^set search_path = pg_catalog, pg_temp$/m.test(settingsOf(text)),
  );
  // An inlined function uses the search path that its caller has set.
  const callable = without.filter(
    ({ text }) =>
      !/^language sql$/m.test(settingsOf(text)) ||
      /security definer/.test(text) ||
      /^grant execute/m.test(text),
  );
  expect(callable.map(({ name }) => name)).toEqual([]);
});

test('no string constant contains a backslash, whose meaning depends on standard_conforming_strings', () => {
  const files = filesOf('migrations', '.sql').filter(({ name }) => !name.includes('/committed/'));
  const escaping = files.filter(({ text }) => {
    const constants = text.replaceAll(/--.*$/gm, '').match(/'[^']*'/g) ?? [];
    return (
      constants.some((each) => each.includes('\\')) || /(?<![\w'])e'/i.test(text.replaceAll(/--.*$/gm, ''))
    );
  });
  expect(files.length).toBeGreaterThan(80);
  expect(escaping.map(({ name }) => name)).toEqual([]);
});

test('nothing is compared with null by =, which transform_null_equals would change to IS NULL', () => {
  const comparing = FIXTURES.filter(({ text }) => {
    const clauses = codeOf(text).match(/\b(?:where|and|or|when|if|on)\b[^;]*?(?:(?<!:)=|<>) null\b/gi) ?? [];
    return clauses.some((clause) => !/\bset\b/.test(clause));
  });
  expect(comparing.map(({ name }) => name)).toEqual([]);
});

test('no object identifier is cast to text, because quote_all_identifiers changes the result', () => {
  const files = filesOf('migrations', '.sql').filter(({ name }) => !name.includes('/committed/'));
  const casting = files.filter(({ text }) => /::reg\w+::text/.test(codeOf(text)));
  expect(casting.map(({ name }) => name)).toEqual([]);
});

test('keywords are in lower case', () => {
  expect(FIXTURES.filter(({ text }) => KEYWORDS.test(codeOf(text))).map(({ name }) => name)).toEqual([]);
});

test('no file contains a tab or a carriage return, and each file ends with a newline', () => {
  const untidy = FIXTURES.filter(({ text }) => /[\t\r]/.test(text) || !text.endsWith('\n'));
  expect(untidy.map(({ name }) => name)).toEqual([]);
});
