import type { ReceiveMessageCommandInput, SQSClient } from '@aws-sdk/client-sqs';
import { readSettings, requireDatabase, requireQueue } from '../../src/config.ts';
import { createQueueClient } from '../../src/queue/client.ts';

/** Number of sockets for deletions, as in the worker. */
export const DELETE_SOCKETS = 16;

/** What every contender uses: the same settings, number of pollers and SQS clients as masked-logins. */
export interface Polling {
  databaseUrl: string;
  url: string;
  pollers: number;
  polls: SQSClient;
  deletes: SQSClient;
  /** The same long poll as the loader's. */
  poll: ReceiveMessageCommandInput;
}

/** Reads the settings like masked-logins, and lets SIGTERM end the process. */
export function readPolling(): Polling {
  process.once('SIGTERM', () => process.exit(0));
  const settings = readSettings();
  const queue = requireQueue(settings);
  return {
    databaseUrl: requireDatabase(settings).url,
    url: queue.url,
    pollers: settings.maxPollers,
    polls: createQueueClient(queue, { maxSockets: settings.maxPollers }),
    deletes: createQueueClient(queue, { maxSockets: DELETE_SOCKETS }),
    poll: {
      QueueUrl: queue.url,
      MaxNumberOfMessages: 10,
      WaitTimeSeconds: settings.waitTimeSeconds,
      VisibilityTimeout: settings.visibilityTimeoutSeconds,
      MessageSystemAttributeNames: ['SentTimestamp', 'ApproximateReceiveCount'],
    },
  };
}
