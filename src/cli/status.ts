import type { Command } from 'commander';
import { readSettings, requireDatabase, requireQueue } from '../config.ts';
import { createQueueClient } from '../queue/client.ts';
import { collectStatus, renderStatus } from '../status.ts';
import { commandLine, runCommand } from './command.ts';
import { withDatabase } from './database.ts';

/** `status`: shows where the messages are. */
export function command(): Command {
  return commandLine('status', 'Shows where the messages are, from the queue to user_logins', [
    ['masked-logins status', 'a table for people'],
    ['masked-logins status --json', 'an object for machines'],
  ])
    .option('--json', 'print an object for machines')
    .action((options: { json: boolean }) => runCommand(() => run(options)));
}

async function run({ json }: { json: boolean }): Promise<void> {
  const settings = readSettings();
  const database = requireDatabase(settings);
  const queue = requireQueue(settings);
  const sqs = createQueueClient(queue, { maxSockets: 2 });
  try {
    const situation = { command: 'status', database, queue } as const;
    const status = await withDatabase(situation, (pool) => collectStatus(pool, sqs, queue.url));
    process.stdout.write(`${json ? JSON.stringify(status) : renderStatus(status)}\n`);
  } finally {
    sqs.destroy();
  }
}
