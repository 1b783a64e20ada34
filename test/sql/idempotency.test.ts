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

/** No JSON: a batch that has one fails as a whole, and is masked a second way. */
const malformed = (): Message => message('no JSON');
/** JSON that is no login: it holds up nobody. */
const misfit = (): Message => message(event({ user_id: null }));

/** As which delivery the nth message of a batch is counted. */
const COUNTS = {
  'for the first time': () => 1,
  again: () => 2,
  'partly again': (n: number) => 1 + (n % 2),
};

/** New messages with values that every call repeats. */
const withSharedValues = (): Message[] =>
  Array.from({ length: 300 }, (_, n) =>
    message(event({ ip: `10.8.0.${n % 200}`, device_id: `shared-${n}` })),
  );

test.each([
  [1, 1],
  [1, 2],
  [2, 3],
])(
  'a message that is twice in a batch, delivered for time %i and %i, is one row, and both of its receipts come back',
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

// SQS's count is approximate: a message may come again and be counted as delivered for the first time.
describe.each([1, 2])('counted as delivery %i', (receiveCount) => {
  test.each([
    ['sound', () => message()],
    ['malformed', malformed],
  ])('a %s message that comes again is a duplicate, and is acknowledged again', async (_, make) => {
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

  test('a message that never came to be masked is loaded', async () => {
    const late = { ...message(), receiveCount };
    await maskAll(db, [late]);
    expect(await outcomesOf(db, late.id)).toEqual(['loaded']);
  });
});

test('a message that comes again keeps the row it had', async () => {
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
    ['among others sent at the same moment', [0]],
    ['first of its batch', [1, 2]],
    ['last of its batch', [-2, -1]],
    ['in the middle of its batch', [-1, 1]],
  ])(
    'a message that was quarantined stays there, also where it could be loaded now: %s',
    async (__, offsets) => {
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
    },
  );
});

test('equal events of different messages are different rows', async () => {
  const body = event();
  const [one, other] = [message(body), message(body)];
  const { batchId } = await maskAll(db, [one, other]);
  expect(await ledgerOf(db, batchId)).toMatchObject({ inserted: 2, duplicates: 0 });
});

test('a batch masked twice returns its receipts twice and counts once', async () => {
  const { batchId, receipts } = await maskAll(db, [message(), malformed()]);
  const before = await ledgerOf(db, batchId);
  expect((await mask(db, batchId)).sort()).toEqual(receipts.sort());
  expect(await ledgerOf(db, batchId)).toEqual(before);
});

/** Masks messages in one batch; returns what an expression makes of each row that goes into the tables, in their order. */
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

/** Resolves once so many sessions of the database wait for a lock; the test's own time limit ends the wait. */
async function untilWaiting(count: number): Promise<void> {
  for (;;) {
    const { rows } = await db.superuser.query<{ waiting: number }>(
      `select count(*)::int as waiting from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock'`,
    );
    if (rows[0]!.waiting >= count) return;
  }
}

test('a batch masked by two at once is masked once, and both get its receipts', async () => {
  const batchId = await stage(
    db,
    Array.from({ length: 30 }, () => message()),
  );
  // Both are held up before the first row, so that they are sure to meet.
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

describe.each(Object.entries(COUNTS))('of messages that are delivered %s', (_, count) => {
  describe.each([
    ['no JSON', malformed],
    ['no login', misfit],
  ])('some of which are %s', (__, bad) => {
    test.each([
      ['masking.vault', 'token'],
      ['public.user_logins_default', 'user_id'],
      ['staging.quarantine', 'message_id'],
    ])(
      'rows go into %s in the order of %s, so that no two batches wait for each other in a circle',
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

    test('two batches with the same messages and values in opposite order are masked at once without a deadlock', async () => {
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

test('whichever way a batch goes, it fills its tables in the same order, so that no two wait for each other in a circle', async () => {
  const tables = ['masking.vault', 'public.user_logins_default', 'staging.quarantine'];
  const ways: string[][] = [];
  for (const bad of [malformed, misfit]) {
    for (const receiveCount of [1, 2]) {
      const messages = Array.from({ length: 20 }, (_, n) => ({
        ...(n % 4 === 0 ? bad() : { ...message(event({ ip: null, device_id: randomUUID() })), sentAt: 0 }),
        receiveCount,
      }));
      ways.push(await writtenTo(tables, 'tg_table_name', messages));
    }
  }
  expect(new Set(ways[0])).toHaveProperty('size', 3);
  for (const way of ways) expect(way).toEqual(ways[0]);
});

test('four batches with the same new values and different messages are masked at once', async () => {
  const batches = await Promise.all(
    [0, 1, 2, 3]
      .map((n) => (n % 2 === 0 ? withSharedValues() : withSharedValues().reverse()))
      .map((each) => stage(db, each)),
  );
  await Promise.all(batches.map((batchId) => mask(db, batchId)));
  for (const batchId of batches)
    expect(await ledgerOf(db, batchId)).toMatchObject({ inserted: 300, duplicates: 0 });
});

test('rows = inserted + duplicates + quarantined for every batch that was masked', async () => {
  const { rows } = await db.superuser.query(
    `select count(*)::int as masked, count(*) filter (where rows <> inserted + duplicates + quarantined)::int as wrong
       from staging.batches where masked_at is not null`,
  );
  expect(rows[0].masked).toBeGreaterThan(20);
  expect(rows[0].wrong).toBe(0);
});
