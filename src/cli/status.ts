import { columnsOf, readSettings, requireDatabase, requireQueue } from '../config.ts';
import { createQueueClient } from '../queue/client.ts';
import { collectStatus, renderStatus } from '../status.ts';
import { withDatabase } from './database.ts';

/** `status`: shows where the messages are. */
export async function run({ json }: { json: boolean }): Promise<void> {
  const settings = readSettings();
  const database = requireDatabase(settings);
  const queue = requireQueue(settings);
  const sqs = createQueueClient(queue, { maxSockets: 2 });
  try {
    const situation = { command: 'status', database, queue } as const;
    const status = await withDatabase(situation, (pool) => collectStatus(pool, sqs, queue.url));
    process.stdout.write(
      `${json ? JSON.stringify(status) : renderStatus(status, columnsOf(process.stdout))}\n`,
    );
  } finally {
    sqs.destroy();
  }
}
