import { arrayOf, bytea, encodeRows, int4, text, timestamptz, uuid } from '../database/copy.ts';

/** The view whose trigger writes `staging.raw_messages`: COPY refuses a table that has row-level security. */
export const COPY_INBOX = `copy staging.inbox (batch_id, message_ids, receipt_handles, sent_ats, receive_counts, bodies)
  from stdin (format binary)`;

const FIELDS = [
  uuid,
  arrayOf(uuid),
  arrayOf(text),
  arrayOf(timestamptz),
  arrayOf(int4),
  arrayOf(bytea),
] as const;

/** Messages a row. The trigger's cost is a row's; a hundred times fewer of them is as good as none. */
const PACK = 100;

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
  const packs = Array.from({ length: Math.ceil(messages.length / PACK) }, (_, index) =>
    messages.slice(index * PACK, (index + 1) * PACK),
  );
  return encodeRows(
    FIELDS,
    packs.map((pack) => [
      batchId,
      pack.map(({ messageId }) => messageId),
      pack.map(({ receiptHandle }) => receiptHandle),
      pack.map(({ sentAt }) => sentAt),
      pack.map(({ receiveCount }) => receiveCount),
      pack.map(({ body }) => body),
    ]),
  );
}
