import { afterAll, beforeAll, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { event, inTransaction, maskAll, message } from '../support/staging.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

async function compatOf(
  properties: Record<string, unknown>,
  sentAt?: number,
): Promise<Record<string, unknown>> {
  const user = crypto.randomUUID();
  const login = message(event({ user_id: user, ...properties }));
  await maskAll(db, [sentAt === undefined ? login : { ...login, sentAt }]);
  const { rows } = await db
    .pool('analyst')
    .query('select * from public.user_logins_compat where user_id = $1', [user]);
  return rows[0];
}

test('user_logins_compat has the same columns, order and types as the older definition', async () => {
  const { rows } = await db.superuser.query(
    `select a.attname || ' ' || format_type(a.atttypid, a.atttypmod) as column
       from pg_attribute a where a.attrelid = 'public.user_logins_compat'::regclass and a.attnum > 0 order by a.attnum`,
  );
  expect(rows.map(({ column }) => column)).toEqual([
    'user_id character varying(128)',
    'device_type character varying(32)',
    'masked_ip character varying(256)',
    'masked_device_id character varying(256)',
    'locale character varying(32)',
    'app_version integer',
    'create_date date',
  ]);
});

test.each([
  ['2.3.0', 2],
  ['0.1', 0],
  ['12', 12],
  ['v4.1', 4],
  [' 5.0', 5],
  ['7-beta', 7],
  ['007.1', 7],
  ['999999999', 999_999_999],
  ['9999999999', null],
  ['99999999999999999999.1', null],
  ['-1.0', null],
  ['beta 2', null],
  ['vv1', null],
  ['.5', null],
  ['', null],
  [null, null],
  ['٣.1', null],
  ['１.1', null],
])('the major version of %j is %j', async (version, major) => {
  expect((await compatOf({ app_version: version }))['app_version']).toBe(major);
});

test('create_date is the day in UTC, whatever the time zone of the session', async () => {
  const midnight = Date.UTC(2026, 0, 15);
  const [before, after] = [await compatOf({}, midnight - 1), await compatOf({}, midnight)];
  const days = await inTransaction(db.pool('analyst'), async (reader) => {
    await reader.query(`set local timezone = 'Pacific/Kiritimati'`);
    const { rows } = await reader.query(
      `select create_date::text as day from public.user_logins_compat where user_id = any ($1) order by 1`,
      [[before['user_id'], after['user_id']]],
    );
    return rows;
  });
  expect(days).toEqual([{ day: '2026-01-14' }, { day: '2026-01-15' }]);
});

test('user_logins_compat shows the same tokens and texts as user_logins', async () => {
  const row = await compatOf({ device_type: 'ios', locale: 'RU', ip: '192.0.2.5', device_id: null });
  const { rows } = await db.superuser.query(
    'select masked_ip::text from public.user_logins where user_id = $1',
    [row['user_id']],
  );
  expect(row).toMatchObject({ device_type: 'ios', locale: 'RU', masked_device_id: null, ...rows[0] });
});

test('digits of another script are not a version under an ICU collation either', async () => {
  const { rows: views } = await db.superuser.query<{ definition: string }>(
    `select pg_get_viewdef('public.user_logins_compat'::regclass) as definition`,
  );
  const pattern = /'(\^[^']*)'/.exec(views[0]!.definition)?.[1];
  const { rows } = await db.superuser.query<{ version: string | null }>(
    `select substring('٣.1' collate "und-x-icu" from $1) as version`,
    [pattern ?? 'a view without a pattern'],
  );
  expect(rows[0]!.version).toBeNull();
});
