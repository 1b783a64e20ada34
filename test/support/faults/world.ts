import { readFileSync } from 'node:fs';
import type pg from 'pg';
import { createPool } from '../../../src/database/pool.ts';
import { startStack, type Stack } from '../../../local/stack/stack.ts';
import { createLogger } from '../../../src/log.ts';
import { seededRandom, type Random } from '../../../local/send/random.ts';
import { makeTestDirectory, removeTestDirectory } from '../test-directory.ts';
import { until } from './polling.ts';
import type { Remains } from './check.ts';
import { PostgresProxy } from './postgres-proxy.ts';
import { QueueProxy } from './queue-proxy.ts';
import { Recovery } from './recovery.ts';
import { Supervised } from './supervised.ts';
import { Traffic } from './traffic.ts';

/** Settings of loader and worker besides addresses. Batches are small, so that a few thousand messages make many. */
const SETTINGS = {
  SQS_WAIT_TIME_SECONDS: '1',
  // The loader pauses when rows wait for half of this. The proxy sets the true visibility timeout.
  SQS_VISIBILITY_TIMEOUT_SECONDS: '120',
  SHUTDOWN_GRACE_SECONDS: '15',
  LOAD_BATCH_ROWS: '40',
  LOAD_BATCH_MS: '100',
  LOG_LEVEL: 'info',
};

export interface WorldOptions {
  seed: number;
  messages: number;
  /** Modules to load into the worker in addition to the fault points: a deliberate defect. */
  workerPreloads?: string[];
}

/** Everything that a run consists of: a stack, the processes that use it, traffic, and proxies that inject faults. */
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
  /** Size of the disk to be filled. It is larger than what all messages need. */
  diskMiB: number;
  /** The directory of that disk, once a fault has created it. */
  disk: string | undefined;
  /** Called after the stack has stopped. */
  atEnd: (() => void)[];
  /** Faults that cannot be injected on this machine, and why. */
  skipped: string[];
  /** Counts the occurrences of a text in the server's log. */
  serverLogCount(text: string): number;
  /** How often each kind of fault took effect. */
  hits: Map<string, number>;
  hit(kind: string, count?: number): void;
  /** Kills the server, and waits until it has ended. The stack restarts it. */
  killPostgres(signal: 'SIGKILL' | 'SIGQUIT'): Promise<void>;
  remains(): Promise<Remains>;
  stop(): Promise<void>;
}

export async function startWorld(options: WorldOptions): Promise<World> {
  const localDir = makeTestDirectory();
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
      // For a deliberate defect that must see what the worker may not.
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
    serverLogCount: (text) => readFileSync(stack.file.postgresLog, 'utf8').split(text).length - 1,
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
      await removeTestDirectory(localDir);
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

/** Reads a queue without receiving, through an interface of the emulator. */
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
