import { randomUUID } from 'node:crypto';
import { SendMessageCommand } from '@aws-sdk/client-sqs';
import type { QueueSettings } from '../../src/config.ts';
import { copyIn } from '../../src/database/copy.ts';
import { COPY_INBOX, encodeInbox } from '../../src/load/inbox.ts';
import { createQueueClient } from '../../src/queue/client.ts';
import { receive } from '../../src/queue/receive.ts';
import type { TestDatabase } from '../support/database.ts';

/** Sends a message, receives it and stages it as the loader would. Returns the batch's id. */
export async function stageReceived(db: TestDatabase, queue: QueueSettings, body: string): Promise<string> {
  const sqs = createQueueClient(queue, { maxSockets: 1 });
  await sqs.send(new SendMessageCommand({ QueueUrl: queue.url, MessageBody: body }));
  const [message] = await receive(sqs, queue.url, { waitTimeSeconds: 1, visibilityTimeoutSeconds: 300 });
  sqs.destroy();
  const batchId = randomUUID();
  const client = await db.pool('loader').connect();
  await client.query('begin');
  await copyIn(client, COPY_INBOX, encodeInbox(batchId, [message!]));
  await client.query('select staging.submit_batch($1, 1)', [batchId]);
  await client.query('commit');
  client.release();
  return batchId;
}
