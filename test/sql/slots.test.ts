import { randomUUID } from 'node:crypto';
import type pg from 'pg';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { until } from '../support/pipeline.ts';
import {
  close,
  event,
  inTransaction,
  mask,
  maskAll,
  message,
  outcomesOf,
  stage,
} from '../support/staging.ts';

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

/** What a worker does at its start and end; a few calls do, where nobody is in the way. */
async function clear(): Promise<{ remaining: number; held_by: number[] | null }> {
  const { rows: now } = await db.pool('worker').query('select clock_timestamp()::text as now');
  for (let call = 1; ; call += 1) {
    const { rows } = await db
      .pool('worker')
      .query('select remaining, held_by from staging.rotate_slots(filled_until => $1)', [now[0].now]);
    const { remaining, held_by } = rows[0];
    if (remaining === 0 || call === 3) return { remaining: remaining, held_by };
  }
}

/** A loader's transaction with a canary that ends in a rollback. */
async function rollBack(): Promise<void> {
  const client = await db.superuser.connect();
  await client.query('begin');
  await client.query(
    `insert into staging.inbox
       values (gen_random_uuid(), array[gen_random_uuid()], '{""}', array[now()], '{1}', array[convert_to($1, 'UTF8')])`,
    [CANARY],
  );
  await client.query('rollback');
  client.release();
}

async function fillAndClose(): Promise<void> {
  const { batchId } = await maskAll(db, [message()]);
  await close(db, batchId);
}

/** Whether there is anything in the slots' files. */
async function sizes(): Promise<Record<number, boolean>> {
  const { rows } = await db.superuser.query<{ slot: number; filled: boolean }>(
    `select slot, pg_relation_size(('staging.raw_messages_' || slot)::regclass) > 0 as filled from staging.slots`,
  );
  return Object.fromEntries(rows.map(({ slot, filled }) => [slot, filled]));
}

interface Session {
  client: pg.PoolClient;
  pid: number;
}

/** A transaction that has run a statement and stays open. */
async function open(statement: string, login: 'superuser' | 'worker' = 'superuser'): Promise<Session> {
  const client = await db.pool(login).connect();
  await client.query(`begin; ${statement}`);
  const { rows } = await client.query<{ pid: number }>('select pg_backend_pid() as pid');
  return { client, pid: rows[0]!.pid };
}

async function end({ client }: Session): Promise<void> {
  await client.query('rollback');
  client.release();
}

const openSlot = async (): Promise<number> =>
  (await db.superuser.query('select slot from staging.slots where is_open')).rows[0].slot;

/** When the first slot last could not be emptied after a wait. */
const tried = async (): Promise<string | null> =>
  (await db.superuser.query('select tried_at::text as at from staging.slots where slot = 0')).rows[0].at;

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
  await rollBack();
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

test('rotation leaves out a slot that somebody holds, empties the others, and does it the next time', async () => {
  await fillAndClose();
  await rotate();
  const reader = await open('select from staging.raw_messages_0');
  await fillAndClose();
  await rotate();
  await rotate();
  expect(await sizes()).toEqual({ 0: true, 1: false, 2: false });
  await end(reader);
  expect(await rotate()).toBe(1);
  expect(await sizes()).toEqual({ 0: false, 1: false, 2: false });
});

test('a slot that somebody holds takes nothing more', async () => {
  await fillAndClose();
  await rotate();
  const reader = await open('select from staging.raw_messages_0');
  const seen: number[] = [];
  for (let turn = 0; turn < 4; turn += 1) {
    seen.push(await openSlot());
    await fillAndClose();
    await rotate();
    await rotate();
  }
  expect(seen).toEqual([1, 2, 1, 2]);
  await end(reader);
});

test('where all others are held, the open slot stays open', async () => {
  await fillAndClose();
  await rotate();
  await fillAndClose();
  const reader = await open('select from staging.raw_messages_0');
  await rotate();
  const other = await open('select from staging.raw_messages_1');
  await fillAndClose();
  await rotate();
  expect(await openSlot()).toBe(2);
  await rotate();
  expect(await openSlot()).toBe(2);
  await end(reader);
  await end(other);
});

test('rotation waits once for a lock, and then tries without waiting, so that masking need not queue behind it', async () => {
  await fillAndClose();
  await rotate();
  const reader = await open('select from staging.raw_messages_0');
  await rotate();
  const first = await tried();
  expect(first).not.toBeNull();
  await rotate();
  expect(await tried()).toBe(first);
  await end(reader);
  await rotate();
  expect(await tried()).toBeNull();
});

test('a lock on an inlet reaches no table', async () => {
  for (const [login, inlet] of [
    ['loader', 'staging.inbox'],
    ['worker', 'masking.kek_inlet'],
    ['custodian', 'masking.next_kek_inlet'],
  ] as const) {
    const locked = await inTransaction(db.pool(login), async (client) => {
      await client.query(`lock table ${inlet} in row exclusive mode`);
      const { rows } = await client.query<{ name: string }>(
        `select relation::regclass::text as name from pg_locks
          where pid = pg_backend_pid() and locktype = 'relation' and mode = 'RowExclusiveLock'`,
      );
      return rows.map(({ name }) => name);
    });
    expect(locked).toEqual([inlet]);
  }
});

test('a loader that hangs before its COMMIT keeps the slot that it has filled, and no other', async () => {
  await fillAndClose();
  await rotate();
  const loader = await db.pool('loader').connect();
  await loader.query('begin');
  const batch = randomUUID();
  await loader.query(
    `insert into staging.inbox
     select $1, array[gen_random_uuid()], '{r}', array[now()], '{1}', array[convert_to($2, 'UTF8')]`,
    [batch, event()],
  );
  await loader.query('select staging.submit_batch($1, 1)', [batch]);
  expect(await rotate()).toBe(1);
  await loader.query('commit');
  loader.release();
  expect(await mask(db, batch)).toHaveLength(1);
});

describe('everything that was staged until now', () => {
  test('is off the disk at once, but for what is still needed', async () => {
    const { batchId } = await maskAll(db, [canary()]);
    await close(db, batchId);
    const waiting = await stage(db, [message()]);
    expect(await clear()).toEqual({ remaining: 0, held_by: null });
    expect(await residue()).toEqual([]);
    expect(await mask(db, waiting)).toHaveLength(1);
  });

  test('is so although rolled-back rows share a slot with a batch that is needed', async () => {
    await rollBack();
    await stage(db, [message()]);
    await clear();
    expect(await residue()).toEqual([]);
  });

  test('is so where a batch counts as lost', async () => {
    const batchId = await stage(db, [canary()]);
    await db.superuser.query('update staging.batches set lost_at = now() where batch_id = $1', [batchId]);
    await clear();
    expect(await residue()).toEqual([]);
  });

  test('is so although a loader goes on, whose rows stay', async () => {
    const { batchId } = await maskAll(db, [canary()]);
    await close(db, batchId);
    await rotate();
    const loader = await db.pool('loader').connect();
    await loader.query('begin');
    const batch = randomUUID();
    await loader.query(
      `insert into staging.inbox
       select $1, array[gen_random_uuid()], '{r}', array[now()], '{1}', array[convert_to($2, 'UTF8')]`,
      [batch, event()],
    );
    await db.pool('worker').query('select staging.rotate_slots(filled_until => clock_timestamp())');
    expect(await residue()).toEqual([]);
    await loader.query('select staging.submit_batch($1, 1)', [batch]);
    await loader.query('commit');
    loader.release();
    expect(await clear()).toMatchObject({ remaining: 0 });
    expect(await mask(db, batch)).toHaveLength(1);
  });

  test.each([
    'select from staging.raw_messages_0',
    'lock table staging.raw_messages_0',
    'lock table staging.raw_messages_0 in row exclusive mode',
  ])('remains where somebody holds it, who is named: %s', async (statement) => {
    await fillAndClose();
    const holder = await open(statement);
    expect(await clear()).toEqual({ remaining: 1, held_by: [holder.pid] });
    await end(holder);
    expect(await clear()).toMatchObject({ remaining: 0 });
  });

  test('remains where a worker has begun to rotate and does not end, who is named', async () => {
    await fillAndClose();
    const holder = await open('select staging.rotate_slots()', 'worker');
    expect(await clear()).toEqual({ remaining: 1, held_by: [holder.pid] });
    await end(holder);
  });

  test('remains where a prepared transaction holds it, which counts as 0', async () => {
    await fillAndClose();
    await db.superuser.query(
      `begin; lock table staging.raw_messages_0 in access share mode; prepare transaction 'held'`,
    );
    expect(await clear()).toEqual({ remaining: 1, held_by: [0] });
    await db.superuser.query(`rollback prepared 'held'`);
  });
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
