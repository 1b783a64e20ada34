import { readSettings, requireDatabase, requireQueue } from '../config.ts';
import { checkDatabase } from '../database/check.ts';
import { createPool } from '../database/pool.ts';
import { explaining } from '../explain.ts';
import { createQueueClient } from '../queue/client.ts';
import { collectStatus, renderStatus } from '../status.ts';
import { commandLine, runCommand } from './command.ts';

const command = commandLine('status', 'Shows where the messages are, from the queue to user_logins').option(
  '--json',
  'print an object for machines',
);

await runCommand(async () => {
  const { json } = command.parse().opts<{ json?: boolean }>();
  const settings = readSettings('worker');
  const database = requireDatabase(settings);
  const queue = requireQueue(settings);
  const pool = createPool(database.url, { max: 1, applicationName: 'masked-logins status' });
  const sqs = createQueueClient(queue, { maxSockets: 2 });
  try {
    const status = await explaining({ command: 'status', database, queue }, async () => {
      await checkDatabase(pool);
      return collectStatus(pool, sqs, queue.url);
    });
    process.stdout.write(`${json === true ? JSON.stringify(status) : renderStatus(status)}\n`);
  } finally {
    sqs.destroy();
    await pool.end();
  }
});
