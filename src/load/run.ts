import type { SQSClient } from '@aws-sdk/client-sqs';
import type pg from 'pg';
import { checkDatabase } from '../database/check.ts';
import { createPool } from '../database/pool.ts';
import { explain, hostOf } from '../explain.ts';
import { createQueueClient } from '../queue/client.ts';
import { countWaiting } from '../queue/counts.ts';
import { receive } from '../queue/receive.ts';
import { releaseMessages } from '../queue/release.ts';
import { type Batch, Batcher } from './batcher.ts';
import { Drain } from './drain.ts';
import { type Backlog, Gate, readBacklog } from './gate.ts';
import { Health } from './health.ts';
import { Intake, rowsOf } from './intake.ts';
import { LANES, Lanes } from './lanes.ts';
import type { LoaderOptions, LoaderProgress, LoaderSummary } from './options.ts';
import { runPollers } from './pollers.ts';
import { MAY_STAGE, stageBatch } from './stage.ts';
import { Stop } from './stop.ts';
import { Wakeup } from './wakeup.ts';

/** Longest back-off: Postgres is tried again soon, because everybody waits for it; SQS charges for each request. */
const POSTGRES_BACKOFF_MS = 5_000;
const SQS_BACKOFF_MS = 60_000;

/** How long a poll waits for a message when the loader ends with the queue's end, in seconds. */
const DRAIN_WAIT_SECONDS = 1;

/** Sockets for everything but long polls. */
const SOCKETS = 8;

/** What comes last (giving messages back, closing connections) may take this long each, in milliseconds. */
const LAST_CALL_MS = 3_000;

/**
 * Moves messages from the queue into staging. Deletes nothing from the queue: that comes after masking.
 *
 * @returns when the queue is empty (without `follow`), or after `stop`
 * @throws {FatalError} for what no retry heals, when what was received is staged or given back
 */
export async function runLoader(options: LoaderOptions): Promise<LoaderSummary> {
  return new Loader(options).run();
}

class Loader {
  readonly #options: LoaderOptions;
  readonly #stop = new Stop();
  readonly #grace = new Wakeup();
  readonly #startedAt = performance.now();
  readonly #counts: LoaderProgress = { received: 0, redelivered: 0, staged: 0, batches: 0, backlog: 0 };
  readonly #pool: pg.Pool;
  readonly #pollClient: SQSClient;
  readonly #client: SQSClient;
  readonly #postgres: Health;
  readonly #sqs: Health;
  readonly #batcher: Batcher;
  readonly #lanes: Lanes;
  readonly #intake: Intake;

  constructor(options: LoaderOptions) {
    const { settings, queue, database, log, follow } = options;
    const stop = this.#stop;
    const pause = options.pause ?? ((ms: number) => stop.pause(ms));
    const giveUpAfterMs = follow ? undefined : settings.retryTimeoutSeconds * 1_000;
    this.#options = options;
    // A connection for each lane, and one to ask for the backlog.
    this.#pool = createPool(database.url, { max: LANES + 1, applicationName: 'masked-logins load' });
    this.#pollClient = createQueueClient(queue, { maxSockets: settings.maxPollers });
    this.#client = createQueueClient(queue, { maxSockets: SOCKETS });
    const explained = (error: unknown) => explain(error, { command: 'load', database, queue });
    const postgres = new Health({
      name: `Postgres at ${database.display}`,
      ceilingMs: POSTGRES_BACKOFF_MS,
      explain: explained,
      giveUpAfterMs,
      log,
      pause,
    });
    const sqs = new Health({
      name: `SQS at ${hostOf(queue)}`,
      ceilingMs: SQS_BACKOFF_MS,
      explain: explained,
      giveUpAfterMs,
      log,
      pause,
    });
    const limits = { rows: settings.batchRows, bytes: settings.batchBytes, ms: settings.batchMs };
    const batcher = new Batcher(limits, () => this.#lanes.pump());
    const lanes = new Lanes({
      batcher,
      stage: (batch) => stageBatch(this.#pool, batch),
      health: postgres,
      stop,
      onStaged: (batch) => this.#onStaged(batch),
    });
    const gate = new Gate({
      readBacklog: () => this.#readBacklog(),
      rowsInMemory: () => rowsOf(this.#intake.unstaged),
      maxRows: settings.maxStagedRows,
      maxAgeSeconds: settings.visibilityTimeoutSeconds / 2,
      giveUpAfterMs,
      log,
    });
    const polling = {
      waitTimeSeconds: follow ? settings.waitTimeSeconds : DRAIN_WAIT_SECONDS,
      visibilityTimeoutSeconds: settings.visibilityTimeoutSeconds,
    };
    this.#postgres = postgres;
    this.#sqs = sqs;
    this.#batcher = batcher;
    this.#lanes = lanes;
    this.#intake = new Intake({
      settings,
      receive: () => receive(this.#pollClient, queue.url, polling),
      waitTimeSeconds: polling.waitTimeSeconds,
      onReceived: (messages) => this.#onReceived(messages),
      batcher,
      lanes,
      gate,
      drain: follow ? undefined : new Drain(() => countWaiting(this.#client, queue.url)),
      postgres,
      sqs,
      stop,
    });
  }

  async run(): Promise<LoaderSummary> {
    const { log, stop, leave, onStopping } = this.#options;
    const onStop = (): void => {
      this.#stop.request();
      onStopping?.(Math.ceil(this.#intake.pollsLeftMs / 1_000));
    };
    const onLeave = (): void => this.#grace.wake();
    leave?.addEventListener('abort', onLeave);
    stop?.addEventListener('abort', onStop);
    if (stop?.aborted === true) onStop();
    try {
      const inTime = await Promise.race([this.#work().then(() => true), this.#graceIsOver()]);
      const released = await this.#release();
      if (this.#stop.failure !== undefined) throw this.#stop.failure;
      if (leave?.aborted === true) log.warn({ released }, 'left without waiting for the polls under way');
      else if (!inTime)
        log.error({ released }, 'stopping took longer than SHUTDOWN_GRACE_SECONDS: leaving as it is');
      return this.#summary(released, inTime ? 0 : 1);
    } finally {
      stop?.removeEventListener('abort', onStop);
      leave?.removeEventListener('abort', onLeave);
      this.#postgres.end();
      this.#sqs.end();
      this.#grace.wake();
      // A request that is still under way ends with its socket.
      this.#pollClient.destroy();
      this.#client.destroy();
      await within(LAST_CALL_MS, this.#pool.end());
    }
  }

  /** Everything up to the last staged row. What goes wrong for good is left in `#stop`. */
  async #work(): Promise<void> {
    try {
      await this.#connect();
      await runPollers({ max: this.#options.settings.maxPollers, turn: () => this.#intake.turn() });
    } catch (error) {
      this.#stop.request(error);
    }
    this.#batcher.flush();
    await this.#lanes.idle();
  }

  /** Waits for a database that answers. What is wrong with it for good is told here, before anything is received. */
  async #connect(): Promise<void> {
    while (!this.#stop.isRequested) {
      try {
        await checkDatabase(this.#pool);
        await this.#pool.query(MAY_STAGE);
        await this.#readBacklog();
        this.#postgres.succeeded();
        return;
      } catch (error) {
        await this.#postgres.failed(error);
      }
    }
  }

  #onReceived(messages: readonly { receiveCount: number }[]): void {
    this.#counts.received += messages.length;
    this.#counts.redelivered += messages.filter(({ receiveCount }) => receiveCount > 1).length;
    this.#progress();
  }

  #onStaged(batch: Batch): void {
    this.#counts.staged += batch.messages.length;
    this.#counts.batches += 1;
    this.#intake.staged();
    this.#progress();
  }

  #progress(): void {
    this.#options.onProgress?.({ ...this.#counts });
  }

  async #readBacklog(): Promise<Backlog> {
    const backlog = await readBacklog(this.#pool);
    this.#counts.backlog = backlog.rows;
    // While it is paused, nothing else tells that the backlog shrinks.
    this.#progress();
    return backlog;
  }

  /** False, SHUTDOWN_GRACE_SECONDS after stopping was requested, or when there is to be no waiting any more. */
  async #graceIsOver(): Promise<false> {
    await this.#stop.requested;
    const { leave, settings } = this.#options;
    if (leave?.aborted !== true) await this.#grace.wait(settings.shutdownGraceSeconds * 1_000);
    return false;
  }

  async #release(): Promise<number> {
    const messages = this.#intake.unstaged.flatMap((batch) => batch.messages);
    const handles = messages.map(({ receiptHandle }) => receiptHandle);
    if (handles.length === 0) return 0;
    return (await within(LAST_CALL_MS, releaseMessages(this.#client, this.#options.queue.url, handles))) ?? 0;
  }

  #summary(released: number, exitCode: 0 | 1): LoaderSummary {
    const { received, redelivered, staged, batches } = this.#counts;
    const seconds = Math.round(performance.now() - this.#startedAt) / 1_000;
    return { received, redelivered, staged, batches, released, seconds, exitCode };
  }
}

/** What `work` gives, or undefined where it fails or takes longer than `ms` milliseconds. */
async function within<T>(ms: number, work: Promise<T>): Promise<T | undefined> {
  const deadline = new Wakeup();
  return Promise.race([work.catch(() => undefined), deadline.wait(ms).then(() => undefined)]).finally(() =>
    deadline.wake(),
  );
}
