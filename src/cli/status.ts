import { columnsOf, readSettings, requireDatabase, requireQueue } from '../config.ts';
import { checkDatabase } from '../database/check.ts';
import { createPool } from '../database/pool.ts';
import { explaining } from '../explain.ts';
import { createQueueClient } from '../queue/client.ts';
import { collectStatus, renderStatus } from '../status.ts';

/** `status`: where the messages are. */
export async function run({ json }: { json: boolean }): Promise<void> {
  const settings = readSettings();
  const database = requireDatabase(settings);
  const queue = requireQueue(settings);
  const pool = createPool(database.url, { max: 1, applicationName: 'masked-logins status' });
  const sqs = createQueueClient(queue, { maxSockets: 2 });
  try {
    const status = await explaining({ command: 'status', database, queue }, async () => {
      await checkDatabase(pool);
      return collectStatus(pool, sqs, queue.url);
    });
    process.stdout.write(
      `${json ? JSON.stringify(status) : renderStatus(status, columnsOf(process.stdout))}\n`,
    );
  } finally {
    sqs.destroy();
    await pool.end();
  }
}
