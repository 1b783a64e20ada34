import type { ReceiveMessageCommandInput, SQSClient } from '@aws-sdk/client-sqs';
import { readSettings, requireDatabase, requireQueue } from '../../src/config.ts';
import { createQueueClient } from '../../src/queue/client.ts';

/** Sockets for deletions, as many as our worker has. */
export const DELETE_SOCKETS = 16;

/** What every contender has of the queue: the settings, the number of pollers and the clients of ours. */
export interface Polling {
  databaseUrl: string;
  url: string;
  pollers: number;
  polls: SQSClient;
  deletes: SQSClient;
  /** A long poll as ours is. */
  poll: ReceiveMessageCommandInput;
}

/** Reads the environment, as ours does, and ends the process where it is told to. */
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
