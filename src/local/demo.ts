import { spawn, type ChildProcess } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { SingleBar } from 'cli-progress';
import pg from 'pg';
import { childEnvironment } from '../config.ts';
import { FatalError } from '../errors.ts';
import { createLogger } from '../log.ts';
import { createQueueClient } from '../queue/client.ts';
import { countMessages } from '../queue/counts.ts';
import { loginEvents } from '../send/events.ts';
import { sendEvents } from '../send/send.ts';
import { report, totalsOf, type Totals } from './demo-report.ts';
import { removeData, startStack, type Stack } from './stack.ts';

const EVENTS = 5_000;
const DUPLICATES = 0.2;
const MALFORMED = 0.01;

/** How often the database is asked how far it is, in milliseconds. */
const LOOK_EVERY_MS = 100;
/** How long nothing may move before the demo counts as failed, in milliseconds. */
const STANDSTILL_MS = 60_000;

const CLI = path.join(import.meta.dirname, '../cli');

export interface DemoOptions {
  /** Where the demo tells what it does, a paragraph at a time. */
  print: (text: string) => void;
  signal: AbortSignal;
}

/**
 * The main job from end to end on a stack of its own, of which nothing is left afterwards.
 *
 * @returns whether every event that was sent is in exactly one place
 * @throws {FatalError} where a part of it fails or stands still
 */
export async function runDemo({ print, signal }: DemoOptions): Promise<boolean> {
  const localDir = mkdtempSync(path.join(tmpdir(), 'masked-logins-demo-'));
  // Not for reading, for passing through: run by root, Postgres is another user. The files in it are 0600.
  chmodSync(localDir, 0o711);
  let stack: Stack | undefined;
  try {
    print('Starting a Postgres and an SQS emulator in a temporary directory …');
    stack = await startStack({ localDir, persistent: false, log: createLogger('warn') });
    signal.throwIfAborted();
    print(
      `Sending ${EVENTS} events: ${DUPLICATES * 100} % from a device seen before, ${MALFORMED * 100} % malformed …`,
    );
    const sent = await send(stack, signal);
    await loadAndMask(stack, localDir, sent, signal);
    return await report({ urls: stack.file.urls, sent, queued: await leftInQueue(stack), print });
  } finally {
    await stack?.stop();
    await removeData(localDir);
    rmSync(localDir, { recursive: true, force: true });
  }
}

async function send(stack: Stack, signal: AbortSignal): Promise<number> {
  const client = createQueueClient(queueOf(stack), { maxSockets: 8 });
  try {
    const bodies = loginEvents({ seed: 'demo', duplicates: DUPLICATES, malformed: MALFORMED }).take(EVENTS);
    const { sent } = await sendEvents({ client, queueUrl: stack.file.queueUrl, bodies, signal });
    signal.throwIfAborted();
    return sent;
  } finally {
    client.destroy();
  }
}

/** Runs loader and worker as in production, as processes that know no more than their environment. */
async function loadAndMask(stack: Stack, localDir: string, sent: number, signal: AbortSignal): Promise<void> {
  const environment = childEnvironment({
    LOCAL_DIR: localDir,
    LOG_LEVEL: 'warn',
    SQS_WAIT_TIME_SECONDS: '1',
  });
  const loader = new Child('load.ts', environment);
  const worker = new Child('worker.ts', environment);
  const database = new pg.Client({ connectionString: stack.file.urls.auditor });
  const bar = new SingleBar({
    format: 'Masking {bar} {value}/{total}',
    hideCursor: true,
    noTTYOutput: false,
  });
  try {
    await database.connect();
    bar.start(sent, 0);
    let totals: Totals = { loaded: 0, quarantined: 0 };
    let movedAt = Date.now();
    while (totals.loaded + totals.quarantined < sent) {
      await sleep(LOOK_EVERY_MS);
      signal.throwIfAborted();
      loader.throwIfFailed();
      worker.throwIfFailed();
      const now = await totalsOf(database);
      if (now.loaded + now.quarantined > totals.loaded + totals.quarantined) movedAt = Date.now();
      if (Date.now() - movedAt > STANDSTILL_MS) throw new FatalError('loading has come to a standstill');
      totals = now;
      bar.update(totals.loaded + totals.quarantined);
    }
    // The loader ends by itself once the queue stays empty, and the worker when it is told to.
    await loader.end();
    worker.stop();
    await worker.end();
  } finally {
    bar.stop();
    loader.stop();
    worker.stop();
    await Promise.allSettled([loader.ended, worker.ended]);
    await database.end();
  }
}

async function leftInQueue(stack: Stack): Promise<number> {
  const client = createQueueClient(queueOf(stack), { maxSockets: 1 });
  try {
    const { visible, inFlight } = await countMessages(client, stack.file.queueUrl);
    return visible + inFlight;
  } finally {
    client.destroy();
  }
}

function queueOf({ file }: Stack) {
  const credentials = { accessKeyId: 'local', secretAccessKey: 'local' };
  return { url: file.queueUrl, endpoint: file.endpoint, region: file.region, credentials };
}

/** A command of ours as a child process; what it says is shown only if it fails. */
class Child {
  readonly ended: Promise<void>;
  readonly #name: string;
  readonly #process: ChildProcess;
  #said = '';
  #failed = false;

  constructor(file: string, environment: NodeJS.ProcessEnv) {
    this.#name = file.replace('.ts', '');
    const child = spawn(process.execPath, [path.join(CLI, file)], {
      env: environment,
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    this.#process = child;
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#said += text;
    });
    this.ended = new Promise((resolve) => {
      child.once('error', () => resolve());
      child.once('close', (code) => {
        this.#failed = code !== 0;
        resolve();
      });
    });
  }

  stop(): void {
    this.#process.kill('SIGTERM');
  }

  async end(): Promise<void> {
    await this.ended;
    this.throwIfFailed();
  }

  throwIfFailed(): void {
    if (this.#failed) throw new FatalError(`${this.#name} failed: ${this.#said.trim()}`);
  }
}
