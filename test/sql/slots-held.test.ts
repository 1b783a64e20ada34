/** Slots of staging that a session has locked, and emptying all slots at once. */
import { randomUUID } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import {
  canary,
  clear,
  end,
  fillAndClose,
  open,
  openSlot,
  residue,
  rollBack,
  recycle,
  sizes,
  tried,
} from '../support/slots.ts';
import { sqlstate } from '../support/sqlstate.ts';
import { close, event, inTransaction, mask, maskAll, message, stage } from '../support/staging.ts';

let db: TestDatabase;
beforeEach(async () => {
  db = await createTestDatabase();
});
afterEach(() => db.drop());

test('recycling skips a locked slot, empties the others, and empties it next time', async () => {
  await fillAndClose(db);
  await recycle(db);
  const reader = await open(db, 'select from staging.raw_messages_0');
  await fillAndClose(db);
  await recycle(db);
  await recycle(db);
  expect(await sizes(db)).toEqual({ 0: true, 1: false, 2: false });
  await end(reader);
  expect(await recycle(db)).toBe(1);
  expect(await sizes(db)).toEqual({ 0: false, 1: false, 2: false });
});

test('recycling is refused in REPEATABLE READ, which does not see all rows it would truncate', async () => {
  const worker = await open(db, 'rollback; begin isolation level repeatable read; select', 'worker');
  const batchId = await stage(db, [message(event())]);
  expect(await sqlstate(worker.client.query('select staging.recycle_slots(clock_timestamp())'))).toBe(
    '25000',
  );
  await end(worker);
  expect(await mask(db, batchId)).toHaveLength(1);
});

test('a locked slot takes no new rows', async () => {
  await fillAndClose(db);
  await recycle(db);
  const reader = await open(db, 'select from staging.raw_messages_0');
  const seen: number[] = [];
  for (let turn = 0; turn < 4; turn += 1) {
    seen.push(await openSlot(db));
    await fillAndClose(db);
    await recycle(db);
    await recycle(db);
  }
  expect(seen).toEqual([1, 2, 1, 2]);
  await end(reader);
});

test('the open slot stays open while all others are locked', async () => {
  await fillAndClose(db);
  await recycle(db);
  await fillAndClose(db);
  const reader = await open(db, 'select from staging.raw_messages_0');
  await recycle(db);
  const other = await open(db, 'select from staging.raw_messages_1');
  await fillAndClose(db);
  await recycle(db);
  expect(await openSlot(db)).toBe(2);
  await recycle(db);
  expect(await openSlot(db)).toBe(2);
  await end(reader);
  await end(other);
});

test('recycling waits for a lock only once, so that masking does not queue behind it', async () => {
  await fillAndClose(db);
  await recycle(db);
  const reader = await open(db, 'select from staging.raw_messages_0');
  await recycle(db);
  const first = await tried(db);
  expect(first).not.toBeNull();
  await recycle(db);
  expect(await tried(db)).toBe(first);
  await end(reader);
  await recycle(db);
  expect(await tried(db)).toBeNull();
});

test('a lock on an inbox does not lock a table', async () => {
  for (const [login, inbox] of [
    ['loader', 'staging.inbox'],
    ['worker', 'masking.kek_inbox'],
    ['custodian', 'masking.next_kek_inbox'],
  ] as const) {
    const locked = await inTransaction(db.pool(login), async (client) => {
      await client.query(`lock table ${inbox} in row exclusive mode`);
      const { rows } = await client.query<{ name: string }>(
        `select relation::regclass::text as name from pg_locks
          where pid = pg_backend_pid() and locktype = 'relation' and mode = 'RowExclusiveLock'`,
      );
      return rows.map(({ name }) => name);
    });
    expect(locked).toEqual([inbox]);
  }
});

test('a loader that hangs before its COMMIT blocks only the slot that it has filled', async () => {
  await fillAndClose(db);
  await recycle(db);
  const loader = await db.pool('loader').connect();
  await loader.query('begin');
  const batch = randomUUID();
  await loader.query(
    `insert into staging.inbox
     select $1, array[gen_random_uuid()], '{r}', array[now()], '{1}', array[convert_to($2, 'UTF8')]`,
    [batch, event()],
  );
  await loader.query('select staging.submit_batch($1, 1)', [batch]);
  expect(await recycle(db)).toBe(1);
  await loader.query('commit');
  loader.release();
  expect(await mask(db, batch)).toHaveLength(1);
});

describe('emptying all slots', () => {
  test('removes everything from the disk except pending batches', async () => {
    const { batchId } = await maskAll(db, [canary()]);
    await close(db, batchId);
    const waiting = await stage(db, [message()]);
    expect(await clear(db)).toEqual({ remaining: 0, held_by: null });
    expect(await residue(db)).toEqual([]);
    expect(await mask(db, waiting)).toHaveLength(1);
  });

  test('removes rolled-back rows that share a slot with a pending batch', async () => {
    await rollBack(db);
    await stage(db, [message()]);
    await clear(db);
    expect(await residue(db)).toEqual([]);
  });

  test('removes a batch that is marked lost', async () => {
    const batchId = await stage(db, [canary()]);
    await db.superuser.query('update staging.batches set lost_at = now() where batch_id = $1', [batchId]);
    await clear(db);
    expect(await residue(db)).toEqual([]);
  });

  test('removes acknowledged rows while a loader continues, and keeps the rows of the loader', async () => {
    const { batchId } = await maskAll(db, [canary()]);
    await close(db, batchId);
    await recycle(db);
    const loader = await db.pool('loader').connect();
    await loader.query('begin');
    const batch = randomUUID();
    await loader.query(
      `insert into staging.inbox
       select $1, array[gen_random_uuid()], '{r}', array[now()], '{1}', array[convert_to($2, 'UTF8')]`,
      [batch, event()],
    );
    await db.pool('worker').query('select staging.recycle_slots(filled_until => clock_timestamp())');
    expect(await residue(db)).toEqual([]);
    await loader.query('select staging.submit_batch($1, 1)', [batch]);
    await loader.query('commit');
    loader.release();
    expect(await clear(db)).toMatchObject({ remaining: 0 });
    expect(await mask(db, batch)).toHaveLength(1);
  });

  test.each([
    'select from staging.raw_messages_0',
    'lock table staging.raw_messages_0',
    'lock table staging.raw_messages_0 in row exclusive mode',
  ])('leaves a locked slot and returns the process that has locked it: %s', async (statement) => {
    await fillAndClose(db);
    const holder = await open(db, statement);
    expect(await clear(db)).toEqual({ remaining: 1, held_by: [holder.pid] });
    await end(holder);
    expect(await clear(db)).toMatchObject({ remaining: 0 });
  });

  test('leaves a slot while another worker is recycling, and returns its process', async () => {
    await fillAndClose(db);
    const holder = await open(db, 'select staging.recycle_slots()', 'worker');
    expect(await clear(db)).toEqual({ remaining: 1, held_by: [holder.pid] });
    await end(holder);
  });

  test('leaves a slot that a prepared transaction has locked, and returns process 0', async () => {
    await fillAndClose(db);
    await db.superuser.query(
      `begin; lock table staging.raw_messages_0 in access share mode; prepare transaction 'held'`,
    );
    expect(await clear(db)).toEqual({ remaining: 1, held_by: [0] });
    await db.superuser.query(`rollback prepared 'held'`);
  });
});
