/**
 * The simplest solution: a loop that receives ten messages, and for each of them masks the values, inserts a row and
 * deletes the message.
 */
import { DeleteMessageCommand, ReceiveMessageCommand } from '@aws-sdk/client-sqs';
import pg from 'pg';
import { COLUMNS, rowOf } from './login.ts';
import { readPolling } from './polling.ts';

const INSERT = `insert into bench.row_by_row (${COLUMNS}) values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict do nothing`;

const { databaseUrl, url, polls, deletes, poll } = readPolling();
const client = new pg.Client({ connectionString: databaseUrl });
await client.connect();

for (;;) {
  const { Messages = [] } = await polls.send(new ReceiveMessageCommand(poll));
  for (const message of Messages) {
    await client.query(INSERT, rowOf(message));
    await deletes.send(new DeleteMessageCommand({ QueueUrl: url, ReceiptHandle: message.ReceiptHandle }));
  }
}
