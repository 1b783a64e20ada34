/**
 * A good solution without this project: sqs-consumer with as many parallel consumers as the loader has pollers. It
 * masks values in Node, inserts each batch of ten messages with one INSERT, and deletes them with one request.
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

/** A benchmark with failures is meaningless, so the first one ends it. */
function fail(error: Error): void {
  process.stderr.write(`${error.message}\n`);
  process.exit(1);
}
