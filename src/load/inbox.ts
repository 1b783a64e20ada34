import { arrayOf, bytea, encodeRows, int4, text, timestamptz, uuid } from '../database/copy.ts';

/** The view whose trigger writes `staging.raw_messages`: COPY refuses a table that has row-level security. */
export const COPY_INBOX = `copy staging.inbox (batch_id, message_ids, receipt_handles, sent_ats, receive_counts, bodies)
  from stdin (format binary)`;

/** Its columns: in each array the same position is the same message. */
export const INBOX_FIELDS = [
  uuid,
  arrayOf(uuid),
  arrayOf(text),
  arrayOf(timestamptz),
  arrayOf(int4),
  arrayOf(bytea),
] as const;

/**
 * Messages a row: the trigger's cost is a row's, and a hundred times fewer of them is as good as none. Bytes of bodies a
 * row: the server holds a row several times over.
 */
const PACK = { messages: 100, bytes: 1_048_576 };

/** What is staged of a message. */
export interface StagedMessage {
  messageId: string;
  receiptHandle: string;
  /** In milliseconds since 1970. */
  sentAt: number;
  receiveCount: number;
  body: string | Uint8Array;
}

/** Messages of a batch as data for `COPY_INBOX`. */
export function encodeInbox(batchId: string, messages: readonly StagedMessage[]): Buffer {
  return encodeRows(
    INBOX_FIELDS,
    packsOf(messages).map((pack) => [
      batchId,
      pack.map(({ messageId }) => messageId),
      pack.map(({ receiptHandle }) => receiptHandle),
      pack.map(({ sentAt }) => sentAt),
      pack.map(({ receiveCount }) => receiveCount),
      pack.map(({ body }) => body),
    ]),
  );
}

function packsOf(messages: readonly StagedMessage[]): StagedMessage[][] {
  const packs: StagedMessage[][] = [];
  let bytes = 0;
  for (const message of messages) {
    const pack = packs.at(-1);
    bytes += bytea.size(message.body);
    if (pack === undefined || pack.length === PACK.messages || bytes > PACK.bytes) {
      packs.push([message]);
      bytes = bytea.size(message.body);
    } else {
      pack.push(message);
    }
  }
  return packs;
}
