import { afterEach, beforeEach, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { until } from '../support/pipeline.ts';
import { canary, openSlot, residue, rollBack, recycle } from '../support/slots.ts';
import { close, event, mask, maskAll, message, outcomesOf, stage } from '../support/staging.ts';

let db: TestDatabase;
beforeEach(async () => {
  db = await createTestDatabase();
});
afterEach(() => db.drop());

test('recycling twice removes an acknowledged batch from the disk', async () => {
  const { batchId } = await maskAll(db, [canary()]);
  await close(db, batchId);
  expect(await residue(db)).toEqual(['staging.raw_messages_0']);
  expect(await recycle(db)).toBe(0);
  expect(await recycle(db)).toBe(1);
  expect(await residue(db)).toEqual([]);
});

test('recycling twice removes rolled-back rows from the disk', async () => {
  await rollBack(db);
  expect(await residue(db)).toEqual(['staging.raw_messages_0']);
  await recycle(db);
  await recycle(db);
  expect(await residue(db)).toEqual([]);
});

test('recycling keeps the rows of a batch that is not acknowledged', async () => {
  const waiting = canary();
  const batchId = await stage(db, [waiting]);
  for (let turn = 0; turn < 5; turn += 1) {
    const { batchId: other } = await maskAll(db, [message()]);
    await close(db, other);
    await recycle(db);
  }
  expect(await mask(db, batchId)).toHaveLength(1);
  expect(await outcomesOf(db, waiting.id)).toEqual(['loaded']);
  // A masked batch still returns its receipts until it is closed.
  await recycle(db);
  await recycle(db);
  expect(await mask(db, batchId)).toHaveLength(1);
});

test('recycling waits for a batch that is being copied, and keeps its rows', async () => {
  await db.superuser.query(`alter function staging.recycle_slots set lock_timeout = '50s'`);
  const loader = await db.superuser.connect();
  await loader.query('begin');
  const batch = '00000000-0000-4000-8000-000000000001';
  await loader.query(
    `insert into staging.inbox
     select $1, array[gen_random_uuid()], '{r}', array[now()], '{1}', array[convert_to($2, 'UTF8')]`,
    [batch, event()],
  );
  const { batchId } = await maskAll(db, [message()]);
  await close(db, batchId);
  expect(await recycle(db)).toBe(0);

  const recycling = db.pool('worker').query('select emptied from staging.recycle_slots()');
  await until(async () => {
    const { rowCount } = await db.superuser.query(
      `select from pg_locks where not granted and mode = 'AccessExclusiveLock'
          and relation = 'staging.raw_messages_0'::regclass`,
    );
    return rowCount === 1;
  });
  await loader.query('select staging.submit_batch($1, 1)', [batch]);
  await loader.query('commit');
  loader.release();
  expect((await recycling).rows[0].emptied).toBe(1);
  expect(await mask(db, batch)).toHaveLength(1);
});

test('slots are opened in turn, and an empty open slot stays open', async () => {
  const seen: number[] = [];
  for (let turn = 0; turn < 3; turn += 1) {
    seen.push(await openSlot(db));
    const { batchId } = await maskAll(db, [message()]);
    await close(db, batchId);
    await recycle(db);
    await recycle(db);
  }
  expect(seen).toEqual([0, 1, 2]);
  await recycle(db);
  await recycle(db);
  expect(await openSlot(db)).toBe(0);
});
