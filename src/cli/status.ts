import { readSettings, requireDatabase, requireQueue } from '../config.ts';
import { fatalDatabaseFault } from '../database/faults.ts';
import { checkDatabase } from '../database/check.ts';
import { createPool } from '../database/pool.ts';
import { FatalError } from '../errors.ts';
import { createQueueClient } from '../queue/client.ts';
import { fatalQueueFault } from '../queue/faults.ts';
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
    await checkDatabase(pool);
    const status = await collectStatus(pool, sqs, queue.url);
    process.stdout.write(`${json === true ? JSON.stringify(status) : renderStatus(status)}\n`);
  } catch (error) {
    const fault = fatalDatabaseFault(error) ?? fatalQueueFault(error);
    throw fault === undefined ? error : new FatalError(fault);
  } finally {
    sqs.destroy();
    await pool.end();
  }
});
