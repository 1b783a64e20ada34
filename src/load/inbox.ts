/** Staging a batch: what goes into the view `staging.inbox`, and the transaction that puts it there. */
import type pg from 'pg';
import { arrayOf, bytea, copyIn, encodeRows, int4, text, timestamptz, uuid } from '../database/copy.ts';
import { withConnection } from '../database/pool.ts';
import { codeOf, SQLSTATE } from '../errors.ts';
import { Grouping } from '../grouping.ts';
import type { ReceivedMessage } from '../queue/receive.ts';
import type { Batch } from './batcher.ts';

/** The view's trigger writes `staging.raw_messages`, because COPY refuses a table that has row-level security. */
export const COPY_INBOX = `copy staging.inbox (batch_id, message_ids, receipt_handles, sent_ats, receive_counts, bodies)
  from stdin (format binary)`;

/** The columns of `COPY_INBOX`. In each array, the same position is the same message. */
export const INBOX_FIELDS = [
  uuid,
  arrayOf(uuid),
  arrayOf(text),
  arrayOf(timestamptz),
  arrayOf(int4),
  arrayOf(bytea),
] as const;

/** Changes nothing. It fails if the login may not stage, which an empty queue would otherwise hide. */
export const MAY_STAGE = 'insert into staging.inbox (batch_id) select null where false';

/**
 * The most messages in a row, and the most bytes of their bodies. The trigger costs time for each row, and with a
 * hundred messages in a row that time no longer matters. The server holds a row in memory several times.
 */
const ROW_MAX = { items: 100, bytes: 1_048_576 };

/**
 * The longest time for one attempt, in milliseconds. A batch takes some 50 ms. A server that stops answering without
 * closing the connection would hold the batch until TCP gives up, after a quarter of an hour.
 */
const TIMEOUT_MS = 60_000;

/** What is staged of a message. */
export interface StagedMessage extends Omit<ReceivedMessage, 'body' | 'bytes'> {
  body: string | Uint8Array;
}

/**
 * Stages a batch: its rows, its row in the ledger and its job, in one transaction.
 *
 * After any error, call it again with the same batch. If the connection breaks during COMMIT, only the database knows
 * whether the COMMIT succeeded. If it did, the database says so (ML011), and the batch is staged.
 *
 * @throws any error of `pg`; then the batch is not staged, or that is not known
 */
export async function stageBatch(pool: pg.Pool, batch: Batch): Promise<void> {
  const stage = async (client: pg.PoolClient): Promise<void> => {
    await client.query('begin');
    await copyIn(client, COPY_INBOX, encodeInbox(batch.id, batch.messages));
    await client.query('select staging.submit_batch($1::uuid, $2::int)', [batch.id, batch.messages.length]);
    await client.query('commit');
  };
  await withConnection(pool, stage, TIMEOUT_MS).catch((error: unknown) => {
    if (codeOf(error) !== SQLSTATE.alreadySubmitted) throw error;
  });
}

/** The messages of a batch as data for `COPY_INBOX`. */
export function encodeInbox(batchId: string, messages: readonly StagedMessage[]): Buffer {
  return encodeRows(
    INBOX_FIELDS,
    rowsOf(messages).map((row) => [
      batchId,
      row.map(({ messageId }) => messageId),
      row.map(({ receiptHandle }) => receiptHandle),
      row.map(({ sentAt }) => sentAt),
      row.map(({ receiveCount }) => receiveCount),
      row.map(({ body }) => body),
    ]),
  );
}

function rowsOf(messages: readonly StagedMessage[]): StagedMessage[][] {
  const rows = new Grouping<StagedMessage>(ROW_MAX, ({ body }) => bytea.size(body));
  return [...messages.flatMap((message) => rows.add(message)), ...rows.rest()];
}
