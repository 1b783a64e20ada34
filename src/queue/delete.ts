import { DeleteMessageBatchCommand, type SQSClient } from '@aws-sdk/client-sqs';
import { backoffMs } from '../retry.ts';
import { pause } from '../wait.ts';
import { queueFault } from './faults.ts';
import { entriesOf, inTens } from './tens.ts';

/** What became of messages that were to be deleted. */
export interface Deletion {
  deleted: number;
  /** SQS does not accept these receipt handles (any more): the messages are delivered again. */
  refused: number;
  /** Not deleted after all attempts. */
  failed: number;
}

/** Attempts to delete one message, and the waits between them. */
const ATTEMPTS = 4;
const BACKOFF = { firstMs: 200, ceilingMs: 10_000 };

/** Faults of a receipt handle: sending it again changes nothing. */
const HANDLE_FAULTS = new Set(['ReceiptHandleIsInvalid', 'InvalidParameterValue', 'MessageNotInflight']);

/**
 * Deletes messages, ten in a request. SQS may fail single entries of a request that succeeds. Those are sent again.
 *
 * @param client a client without long polls, which would hold its sockets
 * @param url the queue's URL
 * @param receiptHandles of the messages; any number
 * @param options `wait` replaces the waits in tests
 * @throws any error of the SDK that no retry can fix (see `queueFault`)
 */
export async function deleteMessages(
  client: SQSClient,
  url: string,
  receiptHandles: readonly string[],
  { wait = pause }: { wait?: (ms: number) => Promise<void> } = {},
): Promise<Deletion> {
  const total: Deletion = { deleted: 0, refused: 0, failed: 0 };
  await inTens(receiptHandles, async (ten) => {
    let rest = ten;
    for (let failures = 0; failures < ATTEMPTS && rest.length > 0; failures += 1) {
      if (failures > 0) await wait(backoffMs(failures, BACKOFF));
      const { deleted, refused, again } = await deleteOnce(client, url, rest);
      total.deleted += deleted;
      total.refused += refused;
      rest = again;
    }
    total.failed += rest.length;
  });
  return total;
}

async function deleteOnce(
  client: SQSClient,
  url: string,
  handles: string[],
): Promise<{ deleted: number; refused: number; again: string[] }> {
  try {
    const request = new DeleteMessageBatchCommand({ QueueUrl: url, Entries: entriesOf(handles) });
    const { Successful = [], Failed = [] } = await client.send(request);
    const refused = Failed.filter(({ SenderFault, Code }) => SenderFault && HANDLE_FAULTS.has(Code ?? ''));
    const settled = new Set([...Successful, ...refused].map(({ Id }) => Id));
    const again = handles.filter((_, index) => !settled.has(String(index)));
    return { deleted: Successful.length, refused: refused.length, again };
  } catch (error) {
    if (queueFault(error)?.fatal) throw error;
    return { deleted: 0, refused: 0, again: handles };
  }
}
