import { buildApp } from 'fauxqs';
import { loadStores } from './emulator-stores.ts';
import { freePort } from '../ports.ts';

/** The emulator's default. Another region would only change the ARNs. */
const REGION = 'us-east-1';
const ACCOUNT = '000000000000';
const QUEUE = 'login-queue';
const DEAD_LETTER_QUEUE = 'login-queue-dead-letter';

/**
 * High, because a message is received again each time it was not masked within the visibility timeout. An outage of
 * Postgres must not move messages to the dead-letter queue, which nothing reads.
 */
const MAX_RECEIVES = 50;

export interface EmulatorOptions {
  /** The port of the last time. If it is not free, another one is used. */
  port?: number | undefined;
  /** Where messages are kept over a restart. Without it, they are in memory. */
  dataDirectory?: string | undefined;
  visibilityTimeoutSeconds?: number;
}

export interface Emulator {
  readonly port: number;
  readonly endpoint: string;
  readonly region: string;
  readonly queueUrl: string;
  readonly deadLetterQueueUrl: string;
  stop(): Promise<void>;
}

/**
 * Starts an SQS emulator (fauxqs) in this process, with the login queue and its dead-letter queue.
 *
 * It does not use `startFauxqs` of the package, which listens on all interfaces: anybody in the network could read the
 * events.
 */
export async function startEmulator(options: EmulatorOptions = {}): Promise<Emulator> {
  const stores = await loadStores(options.dataDirectory);
  const app = buildApp({ logger: false, defaultRegion: REGION, stores });
  app.addHook('preClose', (done) => {
    stores.close();
    done();
  });
  const port = await freePort(options.port);
  const endpoint = `http://127.0.0.1:${port}`;
  // The emulator finds queues by name, so these URLs work with and without an endpoint setting, and on another port.
  const urlOf = (name: string) => `${endpoint}/${ACCOUNT}/${name}`;
  const arnOf = (name: string) => `arn:aws:sqs:${REGION}:${ACCOUNT}:${name}`;
  const ensureQueue = (name: string, attributes: Record<string, string>) => {
    if (stores.sqsStore.getQueueByName(name) !== undefined) return;
    stores.sqsStore.createQueue(name, urlOf(name), arnOf(name), attributes);
  };
  ensureQueue(DEAD_LETTER_QUEUE, { MessageRetentionPeriod: '1209600' });
  ensureQueue(QUEUE, {
    VisibilityTimeout: String(options.visibilityTimeoutSeconds ?? 300),
    RedrivePolicy: JSON.stringify({
      deadLetterTargetArn: arnOf(DEAD_LETTER_QUEUE),
      maxReceiveCount: MAX_RECEIVES,
    }),
  });
  await app.listen({ port, host: '127.0.0.1' });
  return {
    port,
    endpoint,
    region: REGION,
    queueUrl: urlOf(QUEUE),
    deadLetterQueueUrl: urlOf(DEAD_LETTER_QUEUE),
    stop: () => app.close(),
  };
}
