import type { SQSClient } from '@aws-sdk/client-sqs';
import type pg from 'pg';
import type { QueueSettings, Settings } from '../config.ts';
import { checkDatabase } from '../database/check.ts';
import { createPool } from '../database/pool.ts';
import type { DatabaseSettings } from '../database/url.ts';
import { explain, hostOf } from '../explain.ts';
import type { Logger } from '../log.ts';
import { createQueueClient } from '../queue/client.ts';
import { countWaiting } from '../queue/counts.ts';
import { receive } from '../queue/receive.ts';
import { releaseMessages } from '../queue/release.ts';
import { aborted, onAbort, pause, within } from '../wait.ts';
import { Drain } from './drain.ts';
import { type Backlog, Gate, readBacklog } from './gate.ts';
import { Health } from './health.ts';
import { MAY_STAGE, stageBatch } from './inbox.ts';
import { Intake } from './intake.ts';
import { runPollers } from './pollers.ts';
import { type LoaderProgress, type LoaderSummary, Progress } from './progress.ts';
import { LANES, Stager } from './stager.ts';
import { Stop } from './stop.ts';

/** The longest waits between attempts. Everything waits for Postgres, and each request to SQS costs money. */
const POSTGRES_CEILING_MS = 5_000;
const SQS_CEILING_MS = 60_000;

/** How long a poll waits for a first message if the loader ends when the queue is empty, in seconds. */
const DRAIN_WAIT_SECONDS = 1;

/** Sockets for all requests to SQS but long polls. */
const SOCKETS = 8;

/** The longest time for each of the last steps (returning messages, closing connections), in milliseconds. */
const LAST_STEP_MS = 3_000;

export interface LoaderOptions {
  settings: Settings;
  queue: QueueSettings;
  database: DatabaseSettings;
  log: Logger;
  /** Work until `stop`. Otherwise the loader ends when the queue is empty. */
  follow: boolean;
  /** Stops the loader: it waits for the polls under way, and stages what it has received. */
  stop?: AbortSignal;
  /** After `stop`: do not wait any longer. What was not staged is returned to the queue. */
  leave?: AbortSignal;
  /** Called when stopping begins, with how long the polls under way may still take, in whole seconds. */
  onStopping?: (pollSeconds: number) => void;
  /** Called with the counts after each poll, each staged batch and each reading of the backlog. */
  onProgress?: (progress: LoaderProgress) => void;
  /** Replaces the waits of the back-off in tests; in milliseconds. */
  pause?: (ms: number) => Promise<void>;
}

/**
 * Moves messages from the queue into staging. It deletes nothing from the queue: that comes after masking.
 *
 * @returns when the queue is empty (without `follow`), or after `stop`
 * @throws {FatalError} an error that no retry can fix, after what was received is staged or returned to the queue
 */
export async function runLoader(options: LoaderOptions): Promise<LoaderSummary> {
  return new Loader(options).run();
}

class Loader {
  readonly #options: LoaderOptions;
  readonly #startedAt = performance.now();
  readonly #stop = new Stop();
  readonly #ended = new AbortController();
  readonly #progress: Progress;
  readonly #pool: pg.Pool;
  /** Long polls hold the sockets of this client, so there is another one for everything else. */
  readonly #pollClient: SQSClient;
  readonly #client: SQSClient;
  readonly #postgres: Health;
  readonly #sqs: Health;
  readonly #stager: Stager;
  readonly #intake: Intake;

  constructor(options: LoaderOptions) {
    const { settings, queue, database } = options;
    this.#options = options;
    this.#progress = new Progress(options.onProgress);
    // A connection for each lane, and one to read the backlog.
    this.#pool = createPool(database.url, { max: LANES + 1, applicationName: 'masked-logins load' });
    this.#pollClient = createQueueClient(queue, { maxSockets: settings.maxPollers });
    this.#client = createQueueClient(queue, { maxSockets: SOCKETS });
    this.#postgres = this.#healthOf(`Postgres at ${database.display}`, POSTGRES_CEILING_MS);
    this.#sqs = this.#healthOf(`SQS at ${hostOf(queue)}`, SQS_CEILING_MS);
    this.#stager = new Stager({
      limits: { rows: settings.batchRows, bytes: settings.batchBytes, ms: settings.batchMs },
      stage: (batch) => stageBatch(this.#pool, batch),
      health: this.#postgres,
      stop: this.#stop,
      onStaged: (batch) => this.#progress.staged(batch),
    });
    this.#intake = this.#intakeOf(this.#stager);
  }

  #healthOf(name: string, ceilingMs: number): Health {
    const { database, queue, log } = this.#options;
    return new Health({
      name,
      ceilingMs,
      explain: (error) => explain(error, { command: 'load', database, queue }),
      giveUpAfterMs: this.#giveUpAfterMs,
      log,
      pause: this.#options.pause ?? ((ms) => pause(ms, this.#stop.signal)),
    });
  }

  #intakeOf(stager: Stager): Intake {
    const { settings, queue, follow, log } = this.#options;
    const { waitTimeSeconds, visibilityTimeoutSeconds } = settings;
    const polling = {
      waitTimeSeconds: follow ? waitTimeSeconds : DRAIN_WAIT_SECONDS,
      visibilityTimeoutSeconds,
    };
    const gate = new Gate({
      readBacklog: () => this.#readBacklog(),
      stager,
      maxRows: settings.maxStagedRows,
      maxAgeSeconds: visibilityTimeoutSeconds / 2,
      giveUpAfterMs: this.#giveUpAfterMs,
      log,
    });
    return new Intake({
      receive: () => receive(this.#pollClient, queue.url, polling),
      waitTimeSeconds: polling.waitTimeSeconds,
      onReceived: (messages) => this.#progress.received(messages),
      stager,
      gate,
      drain: follow ? undefined : new Drain(() => countWaiting(this.#client, queue.url)),
      postgres: this.#postgres,
      sqs: this.#sqs,
      stop: this.#stop,
    });
  }

  /**
   * How long a service may fail, or the backlog stand still, before the loader gives up. With `follow` it never does.
   */
  get #giveUpAfterMs(): number | undefined {
    const { follow, settings } = this.#options;
    return follow ? undefined : settings.retryTimeoutSeconds * 1_000;
  }

  async run(): Promise<LoaderSummary> {
    const { log, stop, leave } = this.#options;
    if (stop !== undefined) onAbort(stop, () => this.#onStop(), this.#ended.signal);
    try {
      const inTime = await Promise.race([this.#work().then(() => true), this.#graceIsOver()]);
      const released = await this.#release();
      if (this.#stop.failure !== undefined) throw this.#stop.failure;
      if (leave?.aborted === true) log.warn({ released }, 'left without waiting for the polls under way');
      else if (!inTime)
        log.error({ released }, 'stopping took longer than SHUTDOWN_GRACE_SECONDS: leaving at once');
      return this.#summary(released, inTime ? 0 : 1);
    } finally {
      await this.#close();
    }
  }

  #onStop(): void {
    this.#stop.request();
    this.#options.onStopping?.(Math.ceil(this.#intake.pollsLeftMs / 1_000));
  }

  /** Connects, receives until the end or a stop, and stages what was received. Its error is left in `#stop`. */
  async #work(): Promise<void> {
    try {
      await this.#connect();
      await runPollers({ max: this.#options.settings.maxPollers, turn: () => this.#intake.turn() });
    } catch (error) {
      this.#stop.request(error);
    }
    await this.#stager.finish();
  }

  /** Waits for a database that answers. Finds out what is wrong with it before anything is received. */
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

  async #readBacklog(): Promise<Backlog> {
    const backlog = await readBacklog(this.#pool);
    this.#progress.backlogRead(backlog);
    return backlog;
  }

  /** Returns false SHUTDOWN_GRACE_SECONDS after a stop, or earlier if the loader is to leave. */
  async #graceIsOver(): Promise<false> {
    const { leave, settings } = this.#options;
    const signals = [this.#ended.signal, ...(leave === undefined ? [] : [leave])];
    await aborted(this.#stop.signal);
    await pause(settings.shutdownGraceSeconds * 1_000, AbortSignal.any(signals));
    return false;
  }

  /** Returns to the queue what could not be staged. */
  async #release(): Promise<number> {
    const messages = this.#stager.unstaged.flatMap((batch) => batch.messages);
    const handles = messages.map(({ receiptHandle }) => receiptHandle);
    if (handles.length === 0) return 0;
    return (await within(LAST_STEP_MS, releaseMessages(this.#client, this.#options.queue.url, handles))) ?? 0;
  }

  async #close(): Promise<void> {
    this.#ended.abort();
    this.#postgres.end();
    this.#sqs.end();
    // Ends the requests that are still under way.
    this.#pollClient.destroy();
    this.#client.destroy();
    await within(LAST_STEP_MS, this.#pool.end());
  }

  #summary(released: number, exitCode: 0 | 1): LoaderSummary {
    const { received, redelivered, staged, batches } = this.#progress.counts;
    const seconds = Math.round(performance.now() - this.#startedAt) / 1_000;
    return { received, redelivered, staged, batches, released, seconds, exitCode };
  }
}
