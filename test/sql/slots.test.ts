import { afterEach, beforeEach, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { until } from '../support/pipeline.ts';
import { close, event, mask, maskAll, message, outcomesOf, stage } from '../support/staging.ts';

let db: TestDatabase;
beforeEach(async () => {
  db = await createTestDatabase();
});
afterEach(() => db.drop());

const CANARY = 'residue-canary-5d1c';

/** Lets the open slot be as old as it has to be, and does what a worker does every ten seconds. */
async function rotate(): Promise<number> {
  await db.superuser.query(`update staging.slots set opened_at = opened_at - interval '1 minute'`);
  const { rows } = await db.pool('worker').query('select emptied from staging.rotate_slots()');
  return rows[0].emptied;
}

/** Tables of staging with a page that holds the canary, whether in a file or on its way there. */
async function residue(): Promise<string[]> {
  await db.superuser.query('create extension if not exists pageinspect');
  const { rows } = await db.superuser.query<{ name: string }>(
    `select distinct c.oid::regclass::text as name
       from pg_class c, generate_series(0, pg_relation_size(c.oid) / 8192 - 1) as block
      where c.oid::regclass::text like 'staging.raw_messages%'
        and c.relkind = 'r'
        and position(convert_to($1, 'UTF8') in get_raw_page(c.oid::regclass::text, block)) > 0`,
    [CANARY],
  );
  return rows.map(({ name }) => name);
}

const openSlot = async (): Promise<number> =>
  (await db.superuser.query('select slot from staging.slots where is_open')).rows[0].slot;

const canary = () => message(event({ device_id: CANARY }));

test('what was masked and acknowledged is off the disk after two rotations', async () => {
  const { batchId } = await maskAll(db, [canary()]);
  await close(db, batchId);
  expect(await residue()).toEqual(['staging.raw_messages_0']);
  expect(await rotate()).toBe(0);
  expect(await rotate()).toBe(1);
  expect(await residue()).toEqual([]);
});

test('so is what a transaction left that was rolled back', async () => {
  const client = await db.superuser.connect();
  await client.query('begin');
  await client.query(
    `insert into staging.inbox
       values (gen_random_uuid(), array[gen_random_uuid()], '{""}', array[now()], '{1}', array[convert_to($1, 'UTF8')])`,
    [CANARY],
  );
  await client.query('rollback');
  client.release();
  expect(await residue()).toEqual(['staging.raw_messages_0']);
  await rotate();
  await rotate();
  expect(await residue()).toEqual([]);
});

test('a batch that is not acknowledged keeps its rows, wherever rotation moves them', async () => {
  const waiting = canary();
  const batchId = await stage(db, [waiting]);
  for (let turn = 0; turn < 5; turn += 1) {
    const { batchId: other } = await maskAll(db, [message()]);
    await close(db, other);
    await rotate();
  }
  expect(await mask(db, batchId)).toHaveLength(1);
  expect(await outcomesOf(db, waiting.id)).toEqual(['loaded']);
  // Masked and not yet closed, it still gives its receipts.
  await rotate();
  await rotate();
  expect(await mask(db, batchId)).toHaveLength(1);
});

test('rotation waits for a batch that is being copied, and keeps its rows', async () => {
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
  expect(await rotate()).toBe(0);

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

test('rotation gives up on a slot that somebody holds, and does it the next time', async () => {
  const { batchId } = await maskAll(db, [message()]);
  await close(db, batchId);
  await rotate();
  const reader = await db.superuser.connect();
  await reader.query('begin; select from staging.raw_messages');
  expect(await rotate()).toBe(0);
  await reader.query('commit');
  reader.release();
  expect(await rotate()).toBe(1);
});

test('the slot takes turns, and an idle one is left alone', async () => {
  const seen: number[] = [];
  for (let turn = 0; turn < 3; turn += 1) {
    seen.push(await openSlot());
    const { batchId } = await maskAll(db, [message()]);
    await close(db, batchId);
    await rotate();
    await rotate();
  }
  expect(seen).toEqual([0, 1, 2]);
  await rotate();
  await rotate();
  expect(await openSlot()).toBe(0);
});
