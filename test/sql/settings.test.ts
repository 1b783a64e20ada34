import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { unseal } from '../../src/database/kek.ts';
import { migrate } from '../../src/database/migrate.ts';
import { createPool } from '../../src/database/pool.ts';
import { createLogger } from '../../src/log.ts';
import { answersOf, QUERYING_LOGINS } from '../support/answers.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { createFreshDatabase } from '../support/fresh-database.ts';
import { liftLimits } from '../support/keys.ts';
import { withSettings, type Level, type ChangedSettings } from '../support/settings.ts';
import { sqlstate } from '../support/sqlstate.ts';

const LEVELS: Level[] = ['database', 'role', 'session'];

/** Settings to change one at a time, with each value that could change the meaning of SQL. */
const ALONE: [string, string][] = [
  ['standard_conforming_strings', 'off'],
  ['backslash_quote', 'on'],
  ['backslash_quote', 'off'],
  ['escape_string_warning', 'off'],
  ['datestyle', 'German, DMY'],
  ['datestyle', 'SQL, MDY'],
  ['datestyle', 'Postgres, YMD'],
  ['intervalstyle', 'iso_8601'],
  ['intervalstyle', 'sql_standard'],
  ['timezone', 'Pacific/Apia'],
  ['timezone_abbreviations', 'India'],
  ['bytea_output', 'escape'],
  ['xmlbinary', 'hex'],
  ['row_security', 'off'],
  ['extra_float_digits', '-15'],
  ['default_transaction_isolation', 'serializable'],
  ['default_transaction_isolation', 'repeatable read'],
  ['default_transaction_deferrable', 'on'],
  ['search_path', 'hostile, pg_catalog'],
  ['quote_all_identifiers', 'on'],
  ['array_nulls', 'off'],
  ['transform_null_equals', 'on'],
  ['restrict_nonsystem_relation_kind', 'foreign-table'],
  ['plan_cache_mode', 'force_custom_plan'],
  ['debug_parallel_query', 'regress'],
  ['client_min_messages', 'error'],
];

/** The same for settings that only a superuser can change. */
const ALONE_BY_SUPERUSER: [string, string][] = [
  ['plpgsql.variable_conflict', 'use_variable'],
  ['plpgsql.variable_conflict', 'use_column'],
  ['pgcrypto.builtin_crypto_enabled', 'off'],
  ['lc_messages', 'POSIX'],
];

/** Settings that are not changed together with the others, and why. */
const LEFT_OUT: Record<string, string> = {
  client_encoding: 'the encoding of the client; the driver sets it when it connects',
  default_transaction_read_only: 'refuses writes with 25006; tested below',
  session_replication_role: 'disables triggers; tested below',
  max_stack_depth: 'test/sql/unforeseen.test.ts',
  transaction_isolation: 'applies to one transaction',
  transaction_read_only: 'applies to one transaction',
  transaction_deferrable: 'applies to one transaction',
  statement_timeout: 'ends statements',
  lock_timeout: 'ends statements',
  transaction_timeout: 'ends sessions',
  idle_session_timeout: 'ends sessions',
  idle_in_transaction_session_timeout: 'ends sessions',
  exit_on_error: 'ends sessions',
  tcp_user_timeout: 'ends sessions',
  default_table_access_method: 'only one exists',
  default_tablespace: 'would name something that does not exist',
  temp_tablespaces: 'would name something that does not exist',
  local_preload_libraries: 'would name something that does not exist',
  session_preload_libraries: 'would name something that does not exist',
  extension_control_path: 'would name something that does not exist',
  backtrace_functions: 'would name something that does not exist',
  wal_consistency_checking: 'adds WAL that only standbys compare',
};

/** Another value for each string setting, because none can be derived. */
const TEXTS: Record<string, string> = {
  application_name: 'other',
  createrole_self_grant: 'inherit',
  datestyle: 'SQL, DMY',
  default_text_search_config: 'pg_catalog.simple',
  dynamic_library_path: '$libdir:/nowhere',
  lc_messages: 'POSIX',
  lc_monetary: 'POSIX',
  lc_numeric: 'POSIX',
  lc_time: 'POSIX',
  'plpgsql.extra_errors': 'all',
  'plpgsql.extra_warnings': 'all',
  restrict_nonsystem_relation_kind: 'foreign-table',
  search_path: 'hostile, pg_catalog',
  timezone: 'America/St_Johns',
  timezone_abbreviations: 'Australia',
};

interface Setting {
  name: string;
  context: 'user' | 'superuser';
  vartype: string;
  setting: string;
  min_val: string | null;
  max_val: string | null;
  enumvals: string[] | null;
}

let db: TestDatabase;
let expected: Record<string, unknown>;
let settings: Setting[];

beforeAll(async () => {
  db = await createTestDatabase();
  await liftLimits(db);
  // A search path can put objects before those of the catalog and of the project: functions with better
  // matching arguments, operators, tables of the same names.
  await db.superuser.query(`
    create schema hostile;
    create function hostile.encode(bytea, text) returns text language sql immutable as $$ select 'hostile' $$;
    create function hostile.convert_to(text, name) returns bytea language sql immutable as $$ select ''::bytea $$;
    create function hostile.now() returns timestamptz language sql immutable as $$ select '-infinity'::timestamptz $$;
    create function hostile.no(text, text) returns boolean language sql immutable as $$ select false $$;
    create operator hostile.= (function = hostile.no, leftarg = text, rightarg = text);
    create operator hostile.<> (function = hostile.no, leftarg = text, rightarg = text);
    create table hostile.user_logins (user_id text);
    create table hostile.raw_messages (batch_id uuid);
    grant usage on schema hostile to public;
    load 'plpgsql'`);
  expected = await answersOf(db);
  await db.superuser.query(`select crypto.gen_random_bytes(1)`);
  const { rows } = await db.superuser.query<Setting>(
    `select lower(name) as name, context, vartype, setting, min_val, max_val, enumvals from pg_settings
      where context in ('user', 'superuser') order by name`,
  );
  settings = rows;
});
afterAll(() => db.drop());

const answersWith = (level: Level, values: ChangedSettings) => withSettings(db, level, values, answersOf);

test('the answers are correct with default settings', () => {
  expect(expected).toMatchObject({
    receipts: 29,
    ledger: { rows: 29, inserted: 24, duplicates: 0, quarantined: 5 },
    again: { inserted: 0, duplicates: 29, quarantined: 0 },
    found: [1, 1, 0],
    foundAfterRotation: [1, 1, 0],
    verified: [{ intact: true, fault: null }],
  });
  expect(expected['shown']).toEqual(expected['shownAfterRotation']);
});

test.each(ALONE)('the answers are the same with %s = %s in a session', async (name, value) => {
  expect(await answersWith('session', { [name]: value })).toEqual(expected);
});

describe.each(LEVELS)('the answers are the same if a %s has', (level) => {
  test('standard_conforming_strings = off', async () => {
    expect(await answersWith(level, { standard_conforming_strings: 'off' })).toEqual(expected);
  });

  test('other values of all settings that a session can change', async () => {
    for (const values of [otherValues('user', 'last'), otherValues('user', 'first')]) {
      expect(await answersWith(level, values)).toEqual(expected);
    }
  });
});

describe.each(['database', 'role'] as const)(
  'the answers are the same if a superuser gives a %s',
  (level) => {
    test.each(ALONE_BY_SUPERUSER)('%s = %s', async (name, value) => {
      if (settings.every((setting) => setting.name !== name)) return; // Postgres 16 does not have it.
      expect(await answersWith(level, { [name]: value })).toEqual(expected);
    });

    test('other values of all settings that only a superuser can change', async () => {
      for (const values of [otherValues('superuser', 'last'), otherValues('superuser', 'first')]) {
        expect(await answersWith(level, values)).toEqual(expected);
      }
    });
  },
);

test.each(LEVELS)('writes are refused if a %s has default_transaction_read_only = on', async (level) => {
  const values = { default_transaction_read_only: 'on' };
  expect(await sqlstate(answersWith(level, values))).toBe('25006');
});

test('a session with restrict_nonsystem_relation_kind = view gets no answers', async () => {
  const values = { restrict_nonsystem_relation_kind: 'view' };
  expect(await sqlstate(answersWith('session', values))).toBe('55000');
});

test('sessions of createPool override all these settings, even read-only', async () => {
  const values = {
    ...otherValues('user', 'last'),
    default_transaction_read_only: 'on',
    restrict_nonsystem_relation_kind: 'view',
  };
  for (const level of ['database', 'role'] as const) {
    expect(await withSettings(db, level, values, answersOf, { pinned: true })).toEqual(expected);
  }
});

test('loading is refused if a superuser has disabled triggers', async () => {
  const values = { session_replication_role: 'replica' };
  expect(await sqlstate(answersWith('database', values))).toBe('ML010');
});

test.each([
  ['Turkish', `locale_provider icu icu_locale 'tr-TR'`],
  ['numeric and case-insensitive', `locale_provider icu icu_locale 'und-u-kn-ks-level2'`],
])('the answers are the same in a database whose collation is %s', async (_, locale) => {
  const database = await createFreshDatabase(locale);
  const urlOf = (login: keyof typeof db.urls) => {
    const url = new URL(db.urls[login]);
    url.pathname = new URL(database.migratorUrl).pathname;
    return url.toString();
  };
  const pools = new Map(
    QUERYING_LOGINS.map((login) => [
      login as string,
      new pg.Pool({ connectionString: urlOf(login), max: 1 }),
    ]),
  );
  const pool = (login: string) => pools.get(login) ?? database.superuser;
  try {
    await migrate({ connectionString: database.migratorUrl, log: createLogger('silent') });
    await unseal(pool('worker'), randomBytes(32));
    await liftLimits({ superuser: database.superuser, pool });
    expect(await answersOf({ superuser: database.superuser, pool })).toEqual(expected);
  } finally {
    await Promise.all([...pools.values()].map((each) => each.end()));
    await database.drop();
  }
});

test('createPool pins its settings before the first query, and keeps other options of the URL', async () => {
  const url = new URL(db.urls.worker);
  url.searchParams.set('options', '-c standard_conforming_strings=off -c work_mem=5MB');
  const pool = createPool(url.toString(), { max: 1, applicationName: 'test settings' });
  const { rows } = await pool.query<Record<string, string>>(
    `select current_setting('standard_conforming_strings') as strings, current_setting('work_mem') as work_mem,
            current_setting('search_path') as search_path`,
  );
  await pool.end();
  expect(rows).toEqual([{ strings: 'on', work_mem: '5MB', search_path: 'pg_catalog, pg_temp' }]);
});

/** Another value for every setting of a context that is not in LEFT_OUT. */
function otherValues(context: Setting['context'], which: 'first' | 'last'): ChangedSettings {
  const values = settings
    .filter((setting) => setting.context === context && LEFT_OUT[setting.name] === undefined)
    .map((setting) => [setting.name, otherValue(setting, which)] as const);
  return Object.fromEntries(values);
}

function otherValue(
  { name, vartype, setting, min_val, max_val, enumvals }: Setting,
  which: 'first' | 'last',
): string {
  if (vartype === 'bool') return setting === 'on' ? 'off' : 'on';
  if (vartype === 'enum') {
    const others = enumvals!.filter((value) => value !== setting);
    return (which === 'first' ? others[0] : others.at(-1)) ?? setting;
  }
  if (vartype === 'string') {
    const text = TEXTS[name];
    if (text === undefined)
      throw new Error(`no other value of ${name} is known: add one to TEXTS, or add the setting to LEFT_OUT`);
    return text;
  }
  const [now, least, most] = [Number(setting), Number(min_val), Number(max_val)];
  if (which === 'first' && now !== least) return String(least);
  return String(Math.min(most, now + Math.max(1, Math.abs(now))));
}
