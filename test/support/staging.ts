import { randomUUID } from 'node:crypto';
import type pg from 'pg';
import { copyIn } from '../../src/database/copy.ts';
import { COPY_INBOX, encodeInbox } from '../../src/load/inbox.ts';
import type { TestDatabase } from './database.ts';

/** 2026-01-15T12:00:00Z in milliseconds: when messages were sent, unless a test says otherwise. */
export const SENT_AT = Date.UTC(2026, 0, 15, 12);

export type Body = string | Uint8Array;

/** A message as the loader stages it. */
export interface Message {
  id: string;
  body: Body;
  sentAt?: number;
  receipt?: string;
  /** 1 by default. */
  receiveCount?: number;
}

export interface Ledger {
  rows: number;
  inserted: number | null;
  duplicates: number | null;
  quarantined: number | null;
  masked: boolean;
  acked: boolean;
  lost: boolean;
}

export type Outcome = 'loaded' | { quarantined: string };

/** A login event as JSON. Undefined properties are omitted. */
export function event(properties: Record<string, unknown> = {}): string {
  return JSON.stringify({ user_id: randomUUID(), ip: '203.0.113.9', device_id: 'device', ...properties });
}

/** A message with a new id. */
export function message(body: Body = event()): Message {
  return { id: randomUUID(), body };
}

/** Copies messages into the inbox and submits them in one transaction, as the loader does. Returns the batch's id. */
export async function stage(
  db: TestDatabase,
  messages: readonly Message[],
  options: { batchId?: string; rowCount?: number } = {},
): Promise<string> {
  const batchId = options.batchId ?? randomUUID();
  await inTransaction(db.pool('loader'), async (client) => {
    const received = messages.map(
      ({ id, body, sentAt = SENT_AT, receipt = `receipt-of-${id}`, receiveCount = 1 }) => ({
        messageId: id,
        receiptHandle: receipt,
        sentAt,
        receiveCount,
        body,
      }),
    );
    await copyIn(client, COPY_INBOX, encodeInbox(batchId, received));
    await client.query('select staging.submit_batch($1::uuid, $2::int)', [
      batchId,
      options.rowCount ?? messages.length,
    ]);
  });
  return batchId;
}

/** Masks a batch in READ COMMITTED, like a worker, and returns the receipts. Other levels are refused (25000). */
export async function mask(db: TestDatabase, batchId: string): Promise<string[]> {
  const client = await db.pool('worker').connect();
  try {
    await client.query('begin isolation level read committed');
    const { rows } = await client.query<{ receipt_handle: string }>(
      'select receipt_handle from masking.mask_batch($1)',
      [batchId],
    );
    await client.query('commit');
    client.release();
    return rows.map((row) => row.receipt_handle);
  } catch (error) {
    client.release(true);
    throw error;
  }
}

export async function close(db: TestDatabase, batchId: string): Promise<void> {
  await db.pool('worker').query('select staging.close_batch($1)', [batchId]);
}

/** Stages and masks messages in one batch. */
export async function maskAll(
  db: TestDatabase,
  messages: readonly Message[],
): Promise<{ batchId: string; receipts: string[] }> {
  const batchId = await stage(db, messages);
  return { batchId, receipts: await mask(db, batchId) };
}

export async function ledgerOf(db: TestDatabase, batchId: string): Promise<Ledger> {
  const { rows } = await db.superuser.query<Ledger>(
    `select rows, inserted, duplicates, quarantined, masked_at is not null as masked,
            acked_at is not null as acked, lost_at is not null as lost
       from staging.batches where batch_id = $1`,
    [batchId],
  );
  return rows[0]!;
}

/** Every row of a message: in user_logins or in quarantine. There should be exactly one. */
export async function outcomesOf(db: TestDatabase, id: string): Promise<Outcome[]> {
  const { rows } = await db.superuser.query<{ reason: string | null }>(
    `select null as reason from public.user_logins where message_id = $1
     union all
     select reason from staging.quarantine where message_id = $1`,
    [id],
  );
  return rows.map(({ reason }) => (reason === null ? 'loaded' : { quarantined: reason }));
}

/** A message's row in user_logins. */
export async function loginOf(db: TestDatabase, id: string): Promise<Record<string, unknown>> {
  const { rows } = await db.superuser.query('select * from public.user_logins where message_id = $1', [id]);
  return rows[0];
}

/** A data key in the clear, as a superuser can read it while the database is unsealed. */
export async function dataKey(db: TestDatabase, purpose: string, field: string): Promise<Buffer> {
  const { rows } = await db.superuser.query<{ key: Buffer }>(`select key from masking.active_key($1, $2)`, [
    purpose,
    field,
  ]);
  return rows[0]!.key;
}

/** The decrypted body of a quarantined message. */
export async function quarantinedBody(db: TestDatabase, id: string): Promise<Buffer> {
  const { rows } = await db.superuser.query<{ body: Buffer }>(
    `select crypto.pgp_sym_decrypt_bytea(q.body, encode(masking.unwrapped(k.wrapped), 'hex')) as body
       from staging.quarantine q
       join masking.keys k on k.purpose = 'cipher' and k.version = q.key_version
      where q.message_id = $1`,
    [id],
  );
  return rows[0]!.body;
}

/** Runs statements in one transaction. An error closes the connection, which rolls back, and is thrown. */
export async function inTransaction<T>(
  pool: pg.Pool,
  use: (client: pg.PoolClient) => Promise<T>,
): Promise<T> {
  const client = await pool.connect();
  try {
    await client.query('begin');
    const result = await use(client);
    await client.query('commit');
    client.release();
    return result;
  } catch (error) {
    client.release(true);
    throw error;
  }
}
