import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { holds } from '../support/forms.ts';
import { markLog } from '../support/server-log.ts';
import { everythingIn, failure, sqlstate } from '../support/sqlstate.ts';
import {
  event,
  ledgerOf,
  mask,
  maskAll,
  message,
  outcomesOf,
  quarantinedBody,
  stage,
} from '../support/staging.ts';

/** A value that the provoked errors contain in every field. */
const CANARY = 'canary-203-0-113-77-5f9d1c';

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterEach(() => db.superuser.query('drop trigger if exists misfortune on public.user_logins_default'));
afterAll(() => db.drop());

/**
 * Makes inserts fail with a SQLSTATE and the canary: those of the user `unlucky`, or those that match
 * `where`.
 */
async function provoke(code: string, where = `new.user_id = 'unlucky'`): Promise<void> {
  await db.superuser.query(`
    create or replace function public.misfortune() returns trigger language plpgsql as $$
    begin
      if ${where} then
        raise exception using errcode = '${code}', message = 'm ${CANARY}', detail = 'd ${CANARY}',
          hint = 'h ${CANARY}', column = 'c ${CANARY}', constraint = 'k ${CANARY}', schema = 's ${CANARY}',
          table = 't ${CANARY}', datatype = 'y ${CANARY}';
      end if;
      return new;
    end $$;
    create trigger misfortune before insert on public.user_logins_default
    for each row execute function public.misfortune()`);
}

/** A login from a month without a partition, so that the trigger on the default partition fires. */
const login = (properties: Record<string, unknown> = {}) => ({
  ...message(event(properties)),
  sentAt: Date.UTC(2001, 0, 1),
});

describe.each([
  ['a data exception', '22000'],
  ['a constraint violation', '23514'],
  ['a PL/pgSQL error', 'P0001'],
  ['a program limit', '54000'],
  ['an external routine error', '39000'],
])('a row that raises %s', (_, code) => {
  test('is quarantined alone, and the rest of its batch loads', async () => {
    await provoke(code);
    const others = Array.from({ length: 20 }, () => login());
    const unlucky = login({ user_id: 'unlucky' });
    const malformed = message('no JSON');
    const log = markLog();
    const { batchId, receipts } = await maskAll(db, [
      ...others.slice(0, 10),
      unlucky,
      malformed,
      ...others.slice(10),
    ]);

    expect(receipts).toHaveLength(22);
    for (const { id } of others) expect(await outcomesOf(db, id)).toEqual(['loaded']);
    const outcomes = await outcomesOf(db, unlucky.id);
    expect(outcomes).toEqual([{ quarantined: expect.stringContaining(code) }]);
    expect(JSON.stringify(outcomes)).not.toContain(CANARY);
    expect(await quarantinedBody(db, unlucky.id)).toEqual(Buffer.from(unlucky.body as string));
    expect(await outcomesOf(db, malformed.id)).toHaveLength(1);
    expect(await ledgerOf(db, batchId)).toMatchObject({
      rows: 22,
      inserted: 20,
      duplicates: 0,
      quarantined: 2,
    });
    expect(holds(log.since(), CANARY)).toBe(false);
  });

  test('adds nothing to the vault', async () => {
    await provoke(code);
    const size = 'select count(*) from masking.vault';
    const { rows: before } = await db.superuser.query(size);
    await maskAll(db, [
      login({ user_id: 'unlucky', ip: 'only of the unlucky', device_id: 'only of the unlucky' }),
    ]);
    expect((await db.superuser.query(size)).rows).toEqual(before);
  });
});

test('a row that raises an error and is twice in its batch is quarantined once', async () => {
  await provoke('22000');
  const unlucky = login({ user_id: 'unlucky' });
  const other = login();
  const { batchId, receipts } = await maskAll(db, [unlucky, other, unlucky, other]);
  expect(receipts).toHaveLength(4);
  expect(await outcomesOf(db, unlucky.id)).toHaveLength(1);
  expect(await ledgerOf(db, batchId)).toMatchObject({ rows: 4, inserted: 1, duplicates: 2, quarantined: 1 });
});

test('a loaded message that raises an error when it is redelivered is not quarantined', async () => {
  const twice = login({ user_id: 'unlucky' });
  await maskAll(db, [twice]);
  await provoke('22000');
  await maskAll(db, [twice]);
  expect(await outcomesOf(db, twice.id)).toEqual(['loaded']);
});

describe.each([
  ['a full disk', '53100'],
  ['a deadlock', '40P01'],
  ['a serialization failure', '40001'],
  ['a server shutdown', '57P01'],
  ['a missing privilege', '42501'],
  ['a damaged file', 'XX001'],
  ['an I/O error', '58030'],
])('%s', (_, code) => {
  test('fails the batch with its SQLSTATE and no details, and changes nothing', async () => {
    await provoke(code);
    const messages = [login(), login({ user_id: 'unlucky' }), message('no JSON')];
    const batchId = await stage(db, messages);
    const before = await ledgerOf(db, batchId);
    const log = markLog();

    const error = await failure(mask(db, batchId));

    expect(error?.code).toBe(code);
    expect(everythingIn(error)).not.toContain(CANARY);
    expect(error?.detail).toBeUndefined();
    expect(holds(log.since(), CANARY)).toBe(false);
    expect(log.since().includes(code)).toBe(true);
    expect(await ledgerOf(db, batchId)).toEqual(before);
    for (const { id } of messages) expect(await outcomesOf(db, id)).toEqual([]);

    await db.superuser.query('drop trigger misfortune on public.user_logins_default');
    expect(await mask(db, batchId)).toHaveLength(3);
    expect(await ledgerOf(db, batchId)).toMatchObject({ inserted: 2, quarantined: 1 });
  });
});

const unlucky = (count: number) => Array.from({ length: count }, () => login({ user_id: 'unlucky' }));
const others = (count: number) => Array.from({ length: count }, () => login());

/** Masking fails with ML015 and changes nothing. Without the trigger, the batch loads. */
async function expectRefused(messages: ReturnType<typeof message>[]): Promise<void> {
  const batchId = await stage(db, messages);
  const before = await ledgerOf(db, batchId);
  const vault = 'select count(*) from masking.vault';
  const { rows: entries } = await db.superuser.query(vault);
  expect(await sqlstate(mask(db, batchId))).toBe('ML015');
  expect(await ledgerOf(db, batchId)).toEqual(before);
  for (const { id } of messages) expect(await outcomesOf(db, id)).toEqual([]);
  expect((await db.superuser.query(vault)).rows).toEqual(entries);

  await db.superuser.query('drop trigger if exists misfortune on public.user_logins_default');
  expect(await mask(db, batchId)).toHaveLength(messages.length);
  expect(await ledgerOf(db, batchId)).toMatchObject({ inserted: messages.length, quarantined: 0 });
}

const nested = (depth: number) => message(`{"user_id":"u","x":${'['.repeat(depth)}${']'.repeat(depth)}}`);

describe('an error that the messages do not cause', () => {
  test.each([30, 2, 1])(
    'fails the batch and quarantines nothing if all of %i messages fail',
    async (count) => {
      await provoke('22021', 'true');
      await expectRefused(others(count));
    },
  );

  test('fails the batch if all messages from one time fail, even if it is only one message', async () => {
    await provoke('22021', `new.create_date < '2001-06-01'`);
    const elsewhere = others(20).map((each) => ({ ...each, sentAt: Date.UTC(2002, 0, 1) }));
    await expectRefused([...elsewhere, login()]);
  });

  test('is assumed if more than a tenth of the messages fail', async () => {
    await provoke('22000');
    await expectRefused([...others(26), ...unlucky(4)]);
  });

  test('is not assumed if a tenth of the messages fail', async () => {
    await provoke('22000');
    const { batchId } = await maskAll(db, [...others(27), ...unlucky(3)]);
    expect(await ledgerOf(db, batchId)).toMatchObject({ inserted: 27, quarantined: 3 });
  });

  test('is no longer assumed after the messages are quarantined in another batch', async () => {
    await provoke('22000');
    const two = unlucky(2);
    const batchId = await stage(db, two);
    expect(await sqlstate(mask(db, batchId))).toBe('ML015');
    await maskAll(db, [...others(18), ...two]);
    expect(await mask(db, batchId)).toHaveLength(2);
    expect(await ledgerOf(db, batchId)).toMatchObject({ inserted: 0, duplicates: 2, quarantined: 0 });
  });
});

describe('a stack that is too small for valid events', () => {
  test.each(['100kB', '120kB', '150kB', '200kB', '1MB'])(
    'quarantines none of them: max_stack_depth = %s',
    async (limit) => {
      await db.superuser.query(`alter database ${db.name} set max_stack_depth = '${limit}'`);
      const worker = new pg.Client({ connectionString: db.urls.worker });
      await worker.connect();
      try {
        const valid = Array.from({ length: 30 }, (_, n) => (n % 3 === 0 ? nested(499) : login()));
        // Two bodies that need lenient mode. One is nested too deeply for any stack.
        const batchId = await stage(db, [...valid, message('no JSON'), nested(100_000)]);
        const state = await sqlstate(worker.query('select masking.mask_batch($1)', [batchId]));
        for (const { id } of valid) {
          expect(await outcomesOf(db, id)).toEqual(state === 'none' ? ['loaded'] : []);
        }
        expect(['none', 'ML015', '54001']).toContain(state);
      } finally {
        await worker.end();
        await db.superuser.query(`alter database ${db.name} reset max_stack_depth`);
      }
    },
  );
});

test('a cancelled batch reveals nothing of its rows, and is masked when it is retried', async () => {
  const batchId = await stage(
    db,
    Array.from({ length: 2_000 }, (_, n) => login({ ip: `${CANARY}${n}`, user_id: `${CANARY}${n}` })),
  );
  const log = markLog();
  const worker = await db.pool('worker').connect();
  await worker.query(`set statement_timeout = '5ms'`);
  const error = await failure(worker.query('select masking.mask_batch($1)', [batchId]));
  worker.release(true);
  expect(error?.code).toBe('57014');
  expect(everythingIn(error)).not.toContain(CANARY);
  expect(holds(log.since(), CANARY)).toBe(false);
  expect(await ledgerOf(db, batchId)).toMatchObject({ masked: false });
  expect(await sqlstate(mask(db, batchId))).toBe('none');
});
