import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import {
  event,
  inTransaction,
  ledgerOf,
  mask,
  maskAll,
  message,
  outcomesOf,
  SENT_AT,
  stage,
  type Message,
} from '../support/staging.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

/** Not JSON: masking fails on a batch that contains it, and then masks the batch again in lenient mode. */
const malformed = (): Message => message('no JSON');
/** JSON that is not a login event: it is quarantined without lenient mode. */
const notEvent = (): Message => message(event({ user_id: null }));

/** Functions that give the nth message of a batch its receive count. */
const COUNTS = {
  'for the first time': () => 1,
  'a second time': () => 2,
  'partly a second time': (n: number) => 1 + (n % 2),
};

/** New messages whose values are the same in each call. */
const withSharedValues = (): Message[] =>
  Array.from({ length: 300 }, (_, n) =>
    message(event({ ip: `10.8.0.${n % 200}`, device_id: `shared-${n}` })),
  );

test.each([
  [1, 1],
  [1, 2],
  [2, 3],
])(
  'a message that is twice in a batch (receive counts %i and %i) becomes one row and returns both receipts',
  async (one, other) => {
    const twice = message();
    const { batchId, receipts } = await maskAll(db, [
      { ...twice, receipt: 'first', receiveCount: one },
      { ...twice, receipt: 'second', receiveCount: other },
    ]);
    expect(receipts.sort()).toEqual(['first', 'second']);
    expect(await outcomesOf(db, twice.id)).toEqual(['loaded']);
    expect(await ledgerOf(db, batchId)).toMatchObject({
      rows: 2,
      inserted: 1,
      duplicates: 1,
      quarantined: 0,
    });
  },
);

test('a malformed message that is twice in a batch is quarantined once', async () => {
  const twice = malformed();
  const { batchId, receipts } = await maskAll(db, [twice, twice]);
  expect(receipts).toHaveLength(2);
  expect(await outcomesOf(db, twice.id)).toHaveLength(1);
  expect(await ledgerOf(db, batchId)).toMatchObject({ rows: 2, inserted: 0, duplicates: 1, quarantined: 1 });
});

// SQS's receive count is approximate: a redelivered message may have count 1.
describe.each([1, 2])('with receive count %i', (receiveCount) => {
  test.each([
    ['valid', () => message()],
    ['malformed', malformed],
  ])('a redelivered %s message is a duplicate, and its receipt is returned', async (_, make) => {
    const again = make();
    const fresh = { ...message(), receiveCount };
    await maskAll(db, [again]);
    const before = await outcomesOf(db, again.id);
    const { batchId, receipts } = await maskAll(db, [{ ...again, receipt: 'again', receiveCount }, fresh]);
    expect(receipts).toContain('again');
    expect(await outcomesOf(db, again.id)).toEqual(before);
    expect(await outcomesOf(db, fresh.id)).toEqual(['loaded']);
    expect(await ledgerOf(db, batchId)).toMatchObject({ inserted: 1, duplicates: 1, quarantined: 0 });
  });

  test('a message that was never masked is loaded', async () => {
    const late = { ...message(), receiveCount };
    await maskAll(db, [late]);
    expect(await outcomesOf(db, late.id)).toEqual(['loaded']);
  });
});

test('a redelivered message does not change its row', async () => {
  const again = message();
  await maskAll(db, [again]);
  const row = 'select xmin::text, * from public.user_logins where message_id = $1';
  const { rows: before } = await db.superuser.query(row, [again.id]);
  await maskAll(db, [again]);
  expect((await db.superuser.query(row, [again.id])).rows).toEqual(before);
});

describe.each(Object.entries(COUNTS))('in a batch that is delivered %s', (_, count) => {
  test.each([
    ['alone', []],
    ['sent at the same time as another', [0]],
    ['sent first in its batch', [1, 2]],
    ['sent last in its batch', [-2, -1]],
    ['sent in the middle of its batch', [-1, 1]],
  ])('a quarantined message stays in quarantine even if its body is valid now: %s', async (__, offsets) => {
    const was = malformed();
    await maskAll(db, [was]);
    const messages = [
      { ...was, body: event() },
      ...offsets.map((offset) => ({ ...message(), sentAt: SENT_AT + offset })),
    ].map((each, n) => ({ ...each, receiveCount: count(n) }));
    const { batchId } = await maskAll(db, messages);
    expect(await outcomesOf(db, was.id)).toEqual([{ quarantined: expect.any(String) }]);
    expect(await ledgerOf(db, batchId)).toMatchObject({
      inserted: offsets.length,
      duplicates: 1,
      quarantined: 0,
    });
  });
});

test('equal events in different messages become different rows', async () => {
  const body = event();
  const [one, other] = [message(body), message(body)];
  const { batchId } = await maskAll(db, [one, other]);
  expect(await ledgerOf(db, batchId)).toMatchObject({ inserted: 2, duplicates: 0 });
});

test('masking a batch twice returns its receipts twice and counts its rows once', async () => {
  const { batchId, receipts } = await maskAll(db, [message(), malformed()]);
  const before = await ledgerOf(db, batchId);
  expect((await mask(db, batchId)).sort()).toEqual(receipts.sort());
  expect(await ledgerOf(db, batchId)).toEqual(before);
});

/** Masks messages in one batch. Returns the value of a SQL expression for each row inserted, in order. */
async function writtenTo(
  tables: readonly string[],
  expression: string,
  messages: readonly Message[],
): Promise<string[]> {
  const onEach = (statement: (table: string) => string): string => tables.map(statement).join('; ');
  await db.superuser.query(`
    create table public.seen (n integer generated always as identity, what text);
    grant insert on public.seen to logins_owner;
    create function public.see() returns trigger language plpgsql as $$
      begin insert into public.seen (what) values (${expression}); return new; end $$;
    ${onEach((table) => `create trigger see before insert on ${table} for each row execute function public.see()`)}`);
  await maskAll(db, messages);
  const { rows } = await db.superuser.query<{ what: string }>('select what from public.seen order by n');
  await db.superuser.query(`
    ${onEach((table) => `drop trigger see on ${table}`)};
    drop function public.see();
    drop table public.seen`);
  return rows.map((row) => row.what);
}

/** Resolves when `count` sessions of the database wait for a lock. */
async function untilWaiting(count: number): Promise<void> {
  for (;;) {
    const { rows } = await db.superuser.query<{ waiting: number }>(
      `select count(*)::int as waiting from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock'`,
    );
    if (rows[0]!.waiting >= count) return;
  }
}

test('a batch that two workers mask at the same time is masked once, and both get its receipts', async () => {
  const batchId = await stage(
    db,
    Array.from({ length: 30 }, () => message()),
  );
  // The lock stops both before the first row, so that they overlap.
  const [one, other] = await inTransaction(db.superuser, async (gate) => {
    await gate.query('lock table public.user_logins in share mode');
    const both = [mask(db, batchId), mask(db, batchId)];
    await untilWaiting(2);
    await gate.query('commit');
    return Promise.all(both);
  });
  expect(one!.sort()).toEqual(other!.sort());
  expect(one).toHaveLength(30);
  expect(await ledgerOf(db, batchId)).toMatchObject({ inserted: 30, duplicates: 0, quarantined: 0 });
});

describe.each(Object.entries(COUNTS))('in a batch that is delivered %s', (_, count) => {
  describe.each([
    ['not JSON', malformed],
    ['not login events', notEvent],
  ])('with messages that are %s', (__, bad) => {
    test.each([
      ['masking.vault', 'token'],
      ['public.user_logins_default', 'user_id'],
      ['staging.quarantine', 'message_id'],
    ])(
      'rows are inserted into %s in the order of %s, so that batches do not deadlock',
      async (table, key) => {
        const messages = Array.from({ length: 120 }, (___, n) => ({
          ...(n % 4 === 0 ? bad() : { ...message(event({ device_id: randomUUID() })), sentAt: 0 }),
          receiveCount: count(n),
        }));
        const keys = await writtenTo([table], `new.${key}`, messages);
        expect(keys.length).toBeGreaterThanOrEqual(30);
        expect(keys).toEqual(keys.toSorted());
      },
    );

    test('two batches with the same messages in opposite order are masked without a deadlock', async () => {
      for (let round = 0; round < 3; round += 1) {
        const values = (n: number) => ({
          ip: `10.9.${round}.${n % 250}`,
          device_id: `round-${round}-${n % 90}`,
        });
        const messages = Array.from({ length: 400 }, (___, n) => ({
          ...(n % 10 === 0 ? bad() : message(event(values(n)))),
          receiveCount: count(n),
        }));
        const redelivered = messages
          .toReversed()
          .map((each) => ({ ...each, receiveCount: each.receiveCount + 1 }));
        const batches = await Promise.all([stage(db, messages), stage(db, redelivered)]);
        const receipts = await Promise.all(batches.map((batchId) => mask(db, batchId)));
        expect(receipts.map((each) => each.length)).toEqual([400, 400]);

        const [one, other] = await Promise.all(batches.map((batchId) => ledgerOf(db, batchId)));
        expect(one!.inserted! + other!.inserted!).toBe(360);
        expect(one!.quarantined! + other!.quarantined!).toBe(40);
        expect(one!.duplicates! + other!.duplicates!).toBe(400);
      }
    });
  });
});

test('each way of masking fills the tables in the same order, so that batches do not deadlock', async () => {
  const tables = ['masking.vault', 'public.user_logins_default', 'staging.quarantine'];
  const orders: string[][] = [];
  for (const bad of [malformed, notEvent]) {
    for (const receiveCount of [1, 2]) {
      const messages = Array.from({ length: 20 }, (_, n) => ({
        ...(n % 4 === 0 ? bad() : { ...message(event({ ip: null, device_id: randomUUID() })), sentAt: 0 }),
        receiveCount,
      }));
      orders.push(await writtenTo(tables, 'tg_table_name', messages));
    }
  }
  expect(new Set(orders[0])).toHaveProperty('size', 3);
  for (const order of orders) expect(order).toEqual(orders[0]);
});

test('four batches with the same new values and different messages are masked concurrently', async () => {
  const batches = await Promise.all(
    [0, 1, 2, 3]
      .map((n) => (n % 2 === 0 ? withSharedValues() : withSharedValues().reverse()))
      .map((each) => stage(db, each)),
  );
  await Promise.all(batches.map((batchId) => mask(db, batchId)));
  for (const batchId of batches)
    expect(await ledgerOf(db, batchId)).toMatchObject({ inserted: 300, duplicates: 0 });
});

test('every masked batch has rows = inserted + duplicates + quarantined', async () => {
  const { rows } = await db.superuser.query(
    `select count(*)::int as masked, count(*) filter (where rows <> inserted + duplicates + quarantined)::int as wrong
       from staging.batches where masked_at is not null`,
  );
  expect(rows[0].masked).toBeGreaterThan(20);
  expect(rows[0].wrong).toBe(0);
});
