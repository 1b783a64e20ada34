import { startFauxqs, type FauxqsServer } from 'fauxqs';
import pino from 'pino';
import { readSettings, type QueueSettings, type Settings } from '../../src/config.ts';
import { databaseAt } from '../../src/database/url.ts';
import type { LoaderOptions } from '../../src/load/run.ts';

export const REGION = 'eu-west-1';
const QUEUE = 'login-queue';

/** A queue in an emulator of this process. */
export interface TestQueue {
  server: FauxqsServer;
  queue: QueueSettings;
  send: (count: number) => void;
  /** Messages ready, in flight and delayed. */
  counts: () => { ready: number; inFlight: number; delayed: number };
  stop: () => Promise<void>;
}

export async function startQueue(): Promise<TestQueue> {
  const server = await startFauxqs({ port: 0, logger: false, defaultRegion: REGION });
  const { queueUrl } = server.createQueue(QUEUE, { region: REGION });
  return {
    server,
    queue: queueAt(server.port, queueUrl),
    send: (count) => {
      for (let n = 0; n < count; n += 1) server.sendMessage(QUEUE, `{"user_id":"u${n}"}`, { region: REGION });
    },
    counts: () => {
      const { ready, inflight, delayed } = server.inspectQueue(QUEUE)!.messages;
      return { ready: ready.length, inFlight: inflight.length, delayed: delayed.length };
    },
    stop: () => server.stop(),
  };
}

/** A queue as seen through a server of ours on this port. */
export function queueAt(port: number, url: string): QueueSettings {
  return {
    url,
    endpoint: `http://127.0.0.1:${port}`,
    region: REGION,
    credentials: { accessKeyId: 'test', secretAccessKey: 'test' },
  };
}

export function settingsWith(variables: Record<string, string> = {}): Settings {
  return readSettings({
    SQS_WAIT_TIME_SECONDS: '1',
    LOAD_BATCH_MS: '20',
    ...variables,
  });
}

/** Options for `runLoader` that a test adds its own to. */
export function optionsFor(queue: QueueSettings, databaseUrl: string): LoaderOptions {
  return {
    settings: settingsWith(),
    queue,
    database: databaseAt(databaseUrl),
    log: pino({ level: 'silent' }),
    follow: false,
  };
}

/** A log that keeps its lines. */
export function recordingLog(): { log: LoaderOptions['log']; lines: () => Record<string, unknown>[] } {
  const written: string[] = [];
  const log = pino({ level: 'trace', base: null }, { write: (line: string) => void written.push(line) });
  return { log, lines: () => written.map((line) => JSON.parse(line) as Record<string, unknown>) };
}
