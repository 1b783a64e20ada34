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

/** Each alone, and each of its values that could change what SQL means. */
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

/** Of context superuser, so no session of ours can set them. */
const ALONE_BY_SUPERUSER: [string, string][] = [
  ['plpgsql.variable_conflict', 'use_variable'],
  ['plpgsql.variable_conflict', 'use_column'],
  ['pgcrypto.builtin_crypto_enabled', 'off'],
  ['lc_messages', 'POSIX'],
];

/** What is not turned with all the others, and why. */
const LEFT_OUT: Record<string, string> = {
  client_encoding: 'says how the client writes text; the driver sets it at its start',
  default_transaction_read_only: 'refuses what writes, with 25006; tested below',
  session_replication_role: 'a superuser switches triggers off; tested below',
  max_stack_depth: 'test/sql/unforeseen.test.ts',
  transaction_isolation: 'is of one transaction',
  transaction_read_only: 'is of one transaction',
  transaction_deferrable: 'is of one transaction',
  statement_timeout: 'ends statements and does not change what they mean',
  lock_timeout: 'ends statements and does not change what they mean',
  transaction_timeout: 'ends sessions',
  idle_session_timeout: 'ends sessions',
  idle_in_transaction_session_timeout: 'ends sessions',
  exit_on_error: 'ends sessions',
  tcp_user_timeout: 'ends sessions',
  default_table_access_method: 'there is one only',
  default_tablespace: 'names something that there is not',
  temp_tablespaces: 'names something that there is not',
  local_preload_libraries: 'names something that there is not',
  session_preload_libraries: 'names something that there is not',
  extension_control_path: 'names something that there is not',
  backtrace_functions: 'names something that there is not',
  wal_consistency_checking: 'writes more WAL, for standbys to compare',
};

/** Values of settings that are texts, where none can be made up. */
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
  // What a search path may bring between us and the catalog: better matches, operators, tables of our names.
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

const answersWith = (level: Level, turned: ChangedSettings) => withSettings(db, level, turned, answersOf);

test('the answers say what they should where nothing is turned', () => {
  expect(expected).toMatchObject({
    receipts: 29,
    ledger: { rows: 29, inserted: 24, duplicates: 0, quarantined: 5 },
    again: { inserted: 0, duplicates: 29, quarantined: 0 },
    known: [1, 1, 0],
    knownAfterRotation: [1, 1, 0],
    verified: [{ intact: true, fault: null }],
  });
  expect(expected['shown']).toEqual(expected['shownAfterRotation']);
});

test.each(ALONE)('turned in a session, %s = %s leaves the answers as they are', async (name, value) => {
  expect(await answersWith('session', { [name]: value })).toEqual(expected);
});

describe.each(LEVELS)('turned for a %s, the answers are the same with', (level) => {
  test('strings that take backslashes as escapes', async () => {
    expect(await answersWith(level, { standard_conforming_strings: 'off' })).toEqual(expected);
  });

  test('every setting that a session can change', async () => {
    for (const turned of [turnedOf('user', 'last'), turnedOf('user', 'first')]) {
      expect(await answersWith(level, turned)).toEqual(expected);
    }
  });
});

describe.each(['database', 'role'] as const)(
  'turned by a superuser for a %s, the answers are the same with',
  (level) => {
    test.each(ALONE_BY_SUPERUSER)('%s = %s', async (name, value) => {
      if (settings.every((setting) => setting.name !== name)) return; // Postgres 16 does not have it.
      expect(await answersWith(level, { [name]: value })).toEqual(expected);
    });

    test('every setting that only a superuser can change', async () => {
      for (const turned of [turnedOf('superuser', 'last'), turnedOf('superuser', 'first')]) {
        expect(await answersWith(level, turned)).toEqual(expected);
      }
    });
  },
);

test.each(LEVELS)(
  'turned to read-only for a %s, what writes is refused, and not answered otherwise',
  async (level) => {
    const turned = { default_transaction_read_only: 'on' };
    expect(await sqlstate(answersWith(level, turned))).toBe('25006');
  },
);

test('a session that may use no view is refused the one for older consumers', async () => {
  const turned = { restrict_nonsystem_relation_kind: 'view' };
  expect(await sqlstate(answersWith('session', turned))).toBe('55000');
});

test('our own sessions write where a database is turned to read-only, and read the same whatever is turned', async () => {
  const turned = {
    ...turnedOf('user', 'last'),
    default_transaction_read_only: 'on',
    restrict_nonsystem_relation_kind: 'view',
  };
  for (const level of ['database', 'role'] as const) {
    expect(await withSettings(db, level, turned, answersOf, { pinned: true })).toEqual(expected);
  }
});

test('where a superuser switches triggers off, loading is refused and loses nothing', async () => {
  const turned = { session_replication_role: 'replica' };
  expect(await sqlstate(answersWith('database', turned))).toBe('ML010');
});

test.each([
  ['Turkish', `locale_provider icu icu_locale 'tr-TR'`],
  ['numeric and case-insensitive in its rules', `locale_provider icu icu_locale 'und-u-kn-ks-level2'`],
])('in a database whose collation is %s the answers are the same', async (_, locale) => {
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

test('a session of ours has set what it depends on before anybody gets it, and keeps the options of its URL', async () => {
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

/** Another value for every setting of a context that none of the tables above is about. */
function turnedOf(context: Setting['context'], which: 'first' | 'last'): ChangedSettings {
  const turned = settings
    .filter((setting) => setting.context === context && LEFT_OUT[setting.name] === undefined)
    .map((setting) => [setting.name, otherValue(setting, which)] as const);
  return Object.fromEntries(turned);
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
    if (text === undefined) throw new Error(`no other value of ${name}: put it into a table of this file`);
    return text;
  }
  const [now, least, most] = [Number(setting), Number(min_val), Number(max_val)];
  if (which === 'first' && now !== least) return String(least);
  return String(Math.min(most, now + Math.max(1, Math.abs(now))));
}
