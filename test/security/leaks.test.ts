import { randomBytes, randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { unseal } from '../../src/database/kek.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { findLeaks } from '../support/leak-scan.ts';
import { markLog } from '../support/server-log.ts';
import { holds } from '../support/forms.ts';
import { sqlstate } from '../support/sqlstate.ts';
import { close, dataKey, event, mask, maskAll, message, stage } from '../support/staging.ts';
import { bytea, copyIn, encodeRows, int4, text, timestamptz, uuid } from '../../src/database/copy.ts';

const canary = (what: string): string => `${what}-${randomBytes(15).toString('hex')}`;
/** An IPv6 address in its canonical form already, so that there is one form to look for. */
const address = (): string =>
  `fd00:${Array.from({ length: 7 }, () => `1${randomBytes(2).toString('hex').slice(1)}`).join(':')}`;

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase({ sealed: true });
  await db.superuser.query('create extension pg_stat_statements schema public');
});
afterAll(() => db.drop());

test('no address, device id, body or key is anywhere but where it may be, after success and after failures', async () => {
  const secrets: Record<string, string | Buffer> = {
    kek: db.kek,
    'wrong kek': randomBytes(32),
    ip: address(),
    'ip that is none': canary('ip'),
    'device id': canary('device'),
    'malformed body': canary('body'),
    'body that cannot be read': canary('unreadable'),
    'ip of a message that failed': canary('failed-ip'),
    'ip of a batch that was lost': canary('lost-ip'),
  };
  const messages = [
    message(event({ ip: secrets['ip'] })),
    message(event({ ip: secrets['ip that is none'], device_id: secrets['device id'] })),
    message(`{"user_id":"${String(secrets['malformed body'])}`),
    message(`{"user_id":"\\u0000","ip":"${String(secrets['body that cannot be read'])}"}`),
    message(event({ user_id: null, ip: secrets['malformed body'] })),
  ];

  const sealed = await stage(db, messages);
  expect(await sqlstate(mask(db, sealed))).toBe('ML001');
  await unseal(db.pool('worker'), db.kek);
  expect(await sqlstate(unseal(db.pool('worker'), secrets['wrong kek'] as Buffer))).toBe('ML003');
  await mask(db, sealed);
  await close(db, sealed);

  await db.superuser.query(`
    create function public.fail() returns trigger language plpgsql as $$
      begin raise exception using errcode = '53100', detail = new::text; end $$;
    create trigger fail before insert on public.user_logins_default for each row execute function public.fail()`);
  const failing = { ...message(event({ ip: secrets['ip of a message that failed'] })), sentAt: 0 };
  expect(await sqlstate(maskAll(db, [failing]))).toBe('53100');
  await db.superuser.query('drop trigger fail on public.user_logins_default; drop function public.fail()');

  const lost = await stage(db, [message(event({ ip: secrets['ip of a batch that was lost'] }))]);
  await db.superuser.query('analyze');
  await db.superuser.query('truncate staging.raw_messages');
  await mask(db, lost);

  for (const [purpose, field] of [
    ['token', 'ip'],
    ['token', 'device_id'],
    ['cipher', 'ip'],
    ['cipher', 'device_id'],
    ['cipher', 'body'],
  ]) {
    secrets[`${purpose} key of ${field}`] = await dataKey(db, purpose!, field!);
  }
  expect(await findLeaks(db.superuser, secrets)).toEqual([]);
});

describe('the scan sees what is', () => {
  const value = canary('planted');
  const hex = Buffer.from(value).toString('hex');

  test.each([
    ['server log', `do $$ begin raise log '%', '${hex}'; end $$`],
    ['pg_stat_statements', `select 1 /* ${value} */`],
    ['pg_proc', `create function public.planted() returns text language sql as $$ select '${value}' $$`],
    ['pg_description', `comment on schema audit is '${value}'`],
    [
      'graphile_worker._private_jobs.payload',
      `select graphile_worker.add_job('t', json_build_object('v', '${value}'))`,
    ],
    [
      'graphile_worker._private_jobs.last_error',
      `select graphile_worker.add_job('t'); update graphile_worker._private_jobs set last_error = '${value}'`,
    ],
    ['masking.vault.ciphertext', `insert into masking.vault values ('${randomUUID()}', 1, '${value}')`],
    [
      'staging.quarantine.reason',
      `insert into staging.quarantine values ('${randomUUID()}', now(), encode('${value}', 'base64'), 1, '')`,
    ],
    [
      'staging.quarantine.body',
      `insert into staging.quarantine values ('${randomUUID()}', now(), 'r', 1, convert_to('${hex}', 'UTF8'))`,
    ],
    [
      'public.user_logins_default.locale',
      `insert into public.user_logins (user_id, create_date, message_id, locale) values ('u', 'epoch', '${randomUUID()}', '${value}')`,
    ],
    [
      'pg_statistic',
      `create unlogged table public.planted_rows as select '${value}' as v from generate_series(1, 100);
       analyze public.planted_rows`,
    ],
  ])('in %s', async (place, plant) => {
    await db.superuser.query(plant);
    expect(await findLeaks(db.superuser, { planted: value })).toContain(`${place}: planted`);
  });
});

test('a staged row with a column missing leaves nothing of its body in the log', async () => {
  const secret = randomBytes(12).toString('hex');
  const log = markLog();
  const client = await db.pool('loader').connect();
  const row = encodeRows(
    [uuid, uuid, text, timestamptz, int4, bytea],
    [[randomUUID(), randomUUID(), 'r', null, 1, secret]],
  );
  const copy = copyIn(client, 'copy staging.inbox from stdin (format binary)', row);
  await sqlstate(copy);
  client.release(true);
  expect(holds(log.since(), secret)).toBe(false);
});
