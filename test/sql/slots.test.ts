import { afterEach, beforeEach, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { until } from '../support/pipeline.ts';
import { canary, openSlot, residue, rollBack, rotate } from '../support/slots.ts';
import { close, event, mask, maskAll, message, outcomesOf, stage } from '../support/staging.ts';

let db: TestDatabase;
beforeEach(async () => {
  db = await createTestDatabase();
});
afterEach(() => db.drop());

test('what was masked and acknowledged is off the disk after two rotations', async () => {
  const { batchId } = await maskAll(db, [canary()]);
  await close(db, batchId);
  expect(await residue(db)).toEqual(['staging.raw_messages_0']);
  expect(await rotate(db)).toBe(0);
  expect(await rotate(db)).toBe(1);
  expect(await residue(db)).toEqual([]);
});

test('so is what a transaction left that was rolled back', async () => {
  await rollBack(db);
  expect(await residue(db)).toEqual(['staging.raw_messages_0']);
  await rotate(db);
  await rotate(db);
  expect(await residue(db)).toEqual([]);
});

test('a batch that is not acknowledged keeps its rows, wherever rotation moves them', async () => {
  const waiting = canary();
  const batchId = await stage(db, [waiting]);
  for (let turn = 0; turn < 5; turn += 1) {
    const { batchId: other } = await maskAll(db, [message()]);
    await close(db, other);
    await rotate(db);
  }
  expect(await mask(db, batchId)).toHaveLength(1);
  expect(await outcomesOf(db, waiting.id)).toEqual(['loaded']);
  // Masked and not yet closed, it still gives its receipts.
  await rotate(db);
  await rotate(db);
  expect(await mask(db, batchId)).toHaveLength(1);
});

test('rotation waits for a batch that is being copied, and keeps its rows', async () => {
  await db.superuser.query(`alter function staging.rotate_slots set lock_timeout = '50s'`);
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
  expect(await rotate(db)).toBe(0);

  const rotation = db.pool('worker').query('select emptied from staging.rotate_slots()');
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
  expect((await rotation).rows[0].emptied).toBe(1);
  expect(await mask(db, batch)).toHaveLength(1);
});

test('the slot takes turns, and an idle one is left alone', async () => {
  const seen: number[] = [];
  for (let turn = 0; turn < 3; turn += 1) {
    seen.push(await openSlot(db));
    const { batchId } = await maskAll(db, [message()]);
    await close(db, batchId);
    await rotate(db);
    await rotate(db);
  }
  expect(seen).toEqual([0, 1, 2]);
  await rotate(db);
  await rotate(db);
  expect(await openSlot(db)).toBe(0);
});
