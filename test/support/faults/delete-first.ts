/**
 * A deliberate defect for testing the checker. Loaded into a worker, it deletes a batch's messages from SQS before the
 * batch is masked.
 */
import { DeleteMessageBatchCommand, SQSClient } from '@aws-sdk/client-sqs';
import pg from 'pg';

const superuser = new pg.Pool({ connectionString: process.env['FAULTS_SUPERUSER_URL'], max: 1 });
superuser.on('error', () => {});
const sqs = new SQSClient({});
const QueueUrl = process.env['FAULTS_QUEUE_URL'];

type Query = (
  this: pg.Client,
  config: unknown,
  values?: unknown,
  callback?: (error: unknown) => void,
) => unknown;
const prototype = pg.Client.prototype as unknown as { query: Query };
const query = prototype.query;
prototype.query = function (config, values, callback) {
  if (typeof config !== 'string' || !config.includes('masking.mask_batch(')) {
    return query.call(this, config, values, callback);
  }
  void deleteFirst((values as [string])[0])
    .catch(() => {})
    .then(() => query.call(this, config, values, callback));
  return undefined;
};

async function deleteFirst(batchId: string): Promise<void> {
  const { rows } = await superuser.query<{ receipt_handle: string }>(
    'select receipt_handle from staging.raw_messages where batch_id = $1',
    [batchId],
  );
  for (let at = 0; at < rows.length; at += 10) {
    const Entries = rows
      .slice(at, at + 10)
      .map(({ receipt_handle }, index) => ({ Id: String(index), ReceiptHandle: receipt_handle }));
    await sqs.send(new DeleteMessageBatchCommand({ QueueUrl, Entries }));
  }
}
