import { readFileSync } from 'node:fs';
import type pg from 'pg';
import { createPool } from '../../../src/database/pool.ts';
import { startStack, type Stack } from '../../../local/stack/stack.ts';
import { createLogger } from '../../../src/log.ts';
import { seededRandom, type Random } from '../../../local/send/random.ts';
import { makePlace, removePlace } from '../place.ts';
import { until } from './asking.ts';
import type { Remains } from './check.ts';
import { PostgresProxy } from './postgres-proxy.ts';
import { QueueProxy } from './queue-proxy.ts';
import { Recovery } from './recovery.ts';
import { Supervised } from './supervised.ts';
import { Traffic } from './traffic.ts';

/** What loader and worker are given, beside addresses: small batches, so that a few thousand messages are many. */
const SETTINGS = {
  SQS_WAIT_TIME_SECONDS: '1',
  // The gate shuts at half of this; how long messages really stay hidden is the proxy's to say.
  SQS_VISIBILITY_TIMEOUT_SECONDS: '120',
  SHUTDOWN_GRACE_SECONDS: '15',
  LOAD_BATCH_ROWS: '40',
  LOAD_BATCH_MS: '100',
  LOG_LEVEL: 'info',
};

export interface WorldOptions {
  seed: number;
  messages: number;
  /** Modules loaded into the worker beside the fault points: a defect to be put back. */
  workerPreloads?: string[];
}

/** A stack of a run's own, what runs against it, and the means to make it bad. */
export interface World {
  stack: Stack;
  random: Random;
  superuser: pg.Pool;
  custodian: pg.Pool;
  postgres: PostgresProxy;
  queue: QueueProxy;
  loader: Supervised;
  worker: Supervised;
  traffic: Traffic;
  recovery: Recovery;
  localDir: string;
  /** Size of a disk that is to be filled: with all messages on it there is still room. */
  diskMiB: number;
  /** A small disk under some tables, once a fault has made one. */
  disk: string | undefined;
  /** Done when the stack has stopped. */
  atEnd: (() => void)[];
  /** Faults that this machine cannot be given, and why. */
  skipped: string[];
  /** Lines of the server's log with these words. */
  serverLogCount(words: string): number;
  /** How often each kind of fault really struck. */
  hits: Map<string, number>;
  hit(kind: string, count?: number): void;
  /** Kills the server, and ends when it has died; it is started again by itself. */
  killPostgres(signal: 'SIGKILL' | 'SIGQUIT'): Promise<void>;
  remains(): Promise<Remains>;
  stop(): Promise<void>;
}

export async function startWorld(options: WorldOptions): Promise<World> {
  const localDir = makePlace();
  const stack = await startStack({ localDir, persistent: false, log: createLogger('silent') });
  const { urls, kekFile, endpoint, queueUrl, region } = stack.file;
  const atEnd: (() => void)[] = [];
  const hits = new Map<string, number>();
  const hit = (kind: string, count = 1): void => void hits.set(kind, (hits.get(kind) ?? 0) + count);
  const postgres = await PostgresProxy.start(stack.postgres.port);
  const queue = await QueueProxy.start(endpoint, hit);
  const superuser = createPool(urls.superuser, { max: 4, applicationName: 'faults' });
  const custodian = createPool(urls.custodian, { max: 1, applicationName: 'faults' });
  const variables = (url: string) => ({
    ...SETTINGS,
    DATABASE_URL: postgres.through(url),
    SQS_QUEUE_URL: queueUrl.replace(endpoint, queue.endpoint),
    AWS_ENDPOINT_URL_SQS: queue.endpoint,
    AWS_REGION: region,
    AWS_ACCESS_KEY_ID: 'test',
    AWS_SECRET_ACCESS_KEY: 'test',
  });
  const loader = new Supervised('loader', variables(urls.loader));
  const worker = new Supervised(
    'worker',
    {
      ...variables(urls.worker),
      MASKING_KEK_FILE: kekFile,
      // For a defect that is put back and must see what the worker may not.
      ...(options.workerPreloads && { FAULTS_SUPERUSER_URL: urls.superuser, FAULTS_QUEUE_URL: queueUrl }),
    },
    { preloads: options.workerPreloads ?? [] },
  );
  const traffic = new Traffic(options.seed, stack.file);
  const recovery = new Recovery({ superuser, loader, worker, traffic });
  return {
    stack,
    random: seededRandom(`faults ${options.seed}`),
    superuser,
    custodian,
    postgres,
    queue,
    loader,
    worker,
    traffic,
    recovery,
    localDir,
    diskMiB: 64 + Math.ceil(options.messages / 200),
    disk: undefined,
    atEnd,
    skipped: [],
    serverLogCount: (words) => readFileSync(stack.file.postgresLog, 'utf8').split(words).length - 1,
    hits,
    hit,
    async killPostgres(signal) {
      const pid = stack.postgres.pid();
      stack.postgres.kill(signal);
      await until(() => stack.postgres.pid() !== pid);
    },
    async remains() {
      return { queue: await idsIn(queueUrl), deadLetterQueue: await idsIn(stack.file.deadLetterQueueUrl) };
    },
    async stop() {
      await Promise.all([loader.stop('SIGKILL'), worker.stop('SIGKILL')]);
      recovery.stop();
      traffic.stop();
      await Promise.all([queue.stop(), postgres.stop(), superuser.end(), custodian.end()]);
      await stack.stop();
      for (const end of atEnd) end();
      await removePlace(localDir);
    },
  };
}

interface Inspected {
  messages: {
    ready: { messageId: string }[];
    delayed: { messageId: string }[];
    inflight: { message: { messageId: string } }[];
  };
}

/** The emulator's own way to look into a queue without receiving. */
async function idsIn(queueUrl: string): Promise<Set<string>> {
  const url = new URL(queueUrl);
  const answer = await fetch(new URL(`/_fauxqs/queues/${url.pathname.split('/').at(-1)}`, url));
  const { messages } = (await answer.json()) as Inspected;
  const waiting = [
    ...messages.ready,
    ...messages.delayed,
    ...messages.inflight.map(({ message }) => message),
  ];
  return new Set(waiting.map(({ messageId }) => messageId));
}
