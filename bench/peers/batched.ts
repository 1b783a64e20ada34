/**
 * What a good engineer would write without us: sqs-consumer, as many consumers side by side as we have pollers, values
 * masked in Node, one INSERT for each batch of ten, whose messages the library then deletes in one request.
 */
import type { Message } from '@aws-sdk/client-sqs';
import pg from 'pg';
import { Consumer } from 'sqs-consumer';
import { COLUMNS, rowOf } from './login.ts';
import { readPolling } from './polling.ts';

const INSERT = {
  name: 'insert',
  text: `insert into bench.batched (${COLUMNS})
    select * from unnest($1::text[], $2::timestamptz[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[])
    on conflict do nothing`,
};

const { databaseUrl, pollers, polls, poll } = readPolling();
const pool = new pg.Pool({ connectionString: databaseUrl, max: pollers });

for (let n = 0; n < pollers; n += 1) {
  const consumer = Consumer.create({
    queueUrl: poll.QueueUrl!,
    sqs: polls,
    batchSize: poll.MaxNumberOfMessages!,
    waitTimeSeconds: poll.WaitTimeSeconds!,
    visibilityTimeout: poll.VisibilityTimeout!,
    messageSystemAttributeNames: poll.MessageSystemAttributeNames!,
    handleMessageBatch: insert,
  });
  consumer.on('error', fail);
  consumer.on('processing_error', fail);
  consumer.start();
}

async function insert(messages: Message[]): Promise<Message[]> {
  const rows = messages.map(rowOf);
  const columns = rows[0]!.map((_, column) => rows.map((row) => row[column]));
  await pool.query({ ...INSERT, values: columns });
  return messages;
}

/** What fails here would make a figure of nothing. */
function fail(error: Error): void {
  process.stderr.write(`${error.message}\n`);
  process.exit(1);
}
