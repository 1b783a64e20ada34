import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { close, ledgerOf, mask, maskAll, message, outcomesOf, stage } from '../support/staging.ts';
import { sqlstate } from '../support/sqlstate.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

/** A crash of Postgres empties unlogged tables. */
const crash = () => db.superuser.query('truncate staging.raw_messages');

async function count(table: string, batchId: string): Promise<number> {
  const { rows } = await db.superuser.query(`select count(*)::int as n from ${table} where batch_id = $1`, [
    batchId,
  ]);
  return rows[0].n;
}

async function jobsOf(batchId: string): Promise<number> {
  const { rows } = await db.superuser.query(
    'select count(*)::int as n from graphile_worker.jobs where key = $1',
    [`mask_batch:${batchId}`],
  );
  return rows[0].n;
}

describe('submit_batch', () => {
  test('writes a row to the ledger and adds one job, which contains only the id of the batch', async () => {
    const batchId = await stage(db, [message(), message()]);
    expect(await ledgerOf(db, batchId)).toEqual({
      rows: 2,
      inserted: null,
      duplicates: null,
      quarantined: null,
      masked: false,
      acked: false,
      lost: false,
    });
    const { rows } = await db.superuser.query(
      `select t.identifier, j.payload from graphile_worker._private_jobs j
         join graphile_worker._private_tasks t on t.id = j.task_id where j.key = $1`,
      [`mask_batch:${batchId}`],
    );
    expect(rows).toEqual([{ identifier: 'mask_batch', payload: { batch_id: batchId } }]);
  });

  test('refuses a batch that is already submitted, and does not change it', async () => {
    const messages = [message()];
    const batchId = await stage(db, messages);
    expect(await sqlstate(stage(db, messages, { batchId }))).toBe('ML011');
    expect(await count('staging.raw_messages', batchId)).toBe(1);
    expect(await jobsOf(batchId)).toBe(1);
  });

  test.each([
    ['too many', 1, 2],
    ['too few', 2, 1],
    ['zero', 0, 0],
    ['negative', 0, -1],
  ])('refuses a row count that is not the number of staged rows: %s', async (_, staged, rowCount) => {
    const batchId = randomUUID();
    const messages = Array.from({ length: staged }, () => message());
    expect(await sqlstate(stage(db, messages, { batchId, rowCount }))).toBe('ML010');
    expect(await count('staging.raw_messages', batchId)).toBe(0);
    expect(await count('staging.batches', batchId)).toBe(0);
    expect(await jobsOf(batchId)).toBe(0);
  });
});

describe('close_batch', () => {
  test('marks a masked batch as acknowledged', async () => {
    const { batchId } = await maskAll(db, [message()]);
    await close(db, batchId);
    expect(await ledgerOf(db, batchId)).toMatchObject({ masked: true, acked: true, lost: false });
  });

  test('keeps the time of the first call when it is called twice', async () => {
    const { batchId } = await maskAll(db, [message()]);
    await close(db, batchId);
    const acked = 'select acked_at from staging.batches where batch_id = $1';
    const { rows: before } = await db.superuser.query(acked, [batchId]);
    await close(db, batchId);
    expect((await db.superuser.query(acked, [batchId])).rows).toEqual(before);
  });

  test('refuses a batch that is not masked, and keeps its rows', async () => {
    const batchId = await stage(db, [message()]);
    expect(await sqlstate(close(db, batchId))).toBe('ML013');
    expect(await count('staging.raw_messages', batchId)).toBe(1);
    expect(await ledgerOf(db, batchId)).toMatchObject({ acked: false });
  });

  test('refuses a batch that was never submitted', async () => {
    expect(await sqlstate(close(db, randomUUID()))).toBe('ML013');
  });

  test('leaves other batches in staging', async () => {
    const other = await stage(db, [message()]);
    const { batchId } = await maskAll(db, [message()]);
    await close(db, batchId);
    expect(await count('staging.raw_messages', other)).toBe(1);
  });
});

describe('mask_batch', () => {
  test('refuses a batch that was never submitted', async () => {
    expect(await sqlstate(mask(db, randomUUID()))).toBe('ML012');
  });

  test('returns no receipts for a closed batch, and does not mark it lost', async () => {
    const { batchId } = await maskAll(db, [message()]);
    await close(db, batchId);
    expect(await mask(db, batchId)).toEqual([]);
    expect(await ledgerOf(db, batchId)).toMatchObject({ acked: true, lost: false });
  });

  test('marks a batch as lost if its rows are gone after a crash, and returns no receipts', async () => {
    const lost = message();
    const batchId = await stage(db, [lost]);
    await crash();
    expect(await mask(db, batchId)).toEqual([]);
    expect(await ledgerOf(db, batchId)).toMatchObject({ masked: false, acked: false, lost: true });
    expect(await mask(db, batchId)).toEqual([]);
    expect(await sqlstate(close(db, batchId))).toBe('ML013');

    const { receipts } = await maskAll(db, [lost]);
    expect(receipts).toHaveLength(1);
    expect(await outcomesOf(db, lost.id)).toEqual(['loaded']);
  });

  test('returns no receipts for a masked batch whose rows are gone, and redeliveries are duplicates', async () => {
    const masked = message();
    const { batchId } = await maskAll(db, [masked]);
    await crash();
    expect(await mask(db, batchId)).toEqual([]);
    expect(await ledgerOf(db, batchId)).toMatchObject({
      masked: true,
      acked: false,
      lost: true,
      inserted: 1,
    });

    const again = await maskAll(db, [masked]);
    expect(again.receipts).toHaveLength(1);
    expect(await ledgerOf(db, again.batchId)).toMatchObject({ inserted: 0, duplicates: 1 });
    expect(await outcomesOf(db, masked.id)).toEqual(['loaded']);
  });
});
