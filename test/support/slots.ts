/** Helpers that fill, hold and empty slots of staging. */
import type pg from 'pg';
import type { TestDatabase } from './database.ts';
import { close, event, maskAll, message, type Message } from './staging.ts';

export const CANARY = 'residue-canary-5d1c';

/**
 * Makes the open slot old enough, and does what a worker does every ten seconds. Returns the number of emptied slots.
 */
export async function recycle(db: TestDatabase): Promise<number> {
  await db.superuser.query(`update staging.slots set opened_at = opened_at - interval '1 minute'`);
  const { rows } = await db.pool('worker').query('select emptied from staging.recycle_slots()');
  return rows[0].emptied;
}

/** The tables of staging with a page that contains the canary, in memory or on disk. */
export async function residue(db: TestDatabase): Promise<string[]> {
  await db.superuser.query('create extension if not exists pageinspect schema public');
  const { rows } = await db.superuser.query<{ name: string }>(
    `select distinct c.oid::regclass::text as name
       from pg_class c, generate_series(0, pg_relation_size(c.oid) / 8192 - 1) as block
      where c.oid::regclass::text like 'staging.raw_messages%'
        and c.relkind = 'r'
        and position(convert_to($1, 'UTF8') in public.get_raw_page(c.oid::regclass::text, block)) > 0`,
    [CANARY],
  );
  return rows.map(({ name }) => name);
}

/** Does what a worker does when it starts and ends, with at most three calls. */
export async function clear(db: TestDatabase): Promise<{ remaining: number; held_by: number[] | null }> {
  const { rows: now } = await db.pool('worker').query('select clock_timestamp()::text as now');
  for (let call = 1; ; call += 1) {
    const { rows } = await db
      .pool('worker')
      .query('select remaining, held_by from staging.recycle_slots(filled_until => $1)', [now[0].now]);
    const { remaining, held_by } = rows[0];
    if (remaining === 0 || call === 3) return { remaining, held_by };
  }
}

/** Inserts a canary into the inbox, like a loader, and rolls back. */
export async function rollBack(db: TestDatabase): Promise<void> {
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

export async function fillAndClose(db: TestDatabase): Promise<void> {
  const { batchId } = await maskAll(db, [message()]);
  await close(db, batchId);
}

/** Whether the file of each slot contains anything. */
export async function sizes(db: TestDatabase): Promise<Record<number, boolean>> {
  const { rows } = await db.superuser.query<{ slot: number; filled: boolean }>(
    `select slot, pg_relation_size(('staging.raw_messages_' || slot)::regclass) > 0 as filled from staging.slots`,
  );
  return Object.fromEntries(rows.map(({ slot, filled }) => [slot, filled]));
}

export interface Session {
  client: pg.PoolClient;
  pid: number;
}

/** Opens a transaction, runs a statement in it, and leaves it open. */
export async function open(
  db: TestDatabase,
  statement: string,
  login: 'superuser' | 'worker' = 'superuser',
): Promise<Session> {
  const client = await db.pool(login).connect();
  await client.query(`begin; ${statement}`);
  const { rows } = await client.query<{ pid: number }>('select pg_backend_pid() as pid');
  return { client, pid: rows[0]!.pid };
}

export async function end({ client }: Session): Promise<void> {
  await client.query('rollback');
  client.release();
}

export const openSlot = async (db: TestDatabase): Promise<number> =>
  (await db.superuser.query('select slot from staging.slots where is_open')).rows[0].slot;

/** When emptying the first slot last failed after waiting for its lock. */
export const tried = async (db: TestDatabase): Promise<string | null> =>
  (await db.superuser.query('select tried_at::text as at from staging.slots where slot = 0')).rows[0].at;

export const canary = (): Message => message(event({ device_id: CANARY }));
