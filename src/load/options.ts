import type { QueueSettings, Settings } from '../config.ts';
import type { DatabaseSettings } from '../database/url.ts';
import type { Logger } from '../log.ts';

export interface LoaderOptions {
  settings: Settings;
  queue: QueueSettings;
  database: DatabaseSettings;
  log: Logger;
  /** Go on until `stop`; otherwise end when the queue is empty. */
  follow: boolean;
  /** Ends the loader in good order. */
  stop?: AbortSignal;
  /** After `stop`: ends it without waiting for the polls under way; what was not staged goes back to the queue. */
  leave?: AbortSignal;
  /** Called when stopping begins, with how long the polls under way may still take, in whole seconds. */
  onStopping?: (pollSeconds: number) => void;
  /** Called with the counts so far, after each poll, each staged batch and each look at the backlog. */
  onProgress?: (progress: LoaderProgress) => void;
  /** Replaces the clock of the back-off in tests; in milliseconds. */
  pause?: (ms: number) => Promise<void>;
}

export interface LoaderProgress {
  /** Messages that SQS gave us, those included that it had given out before. */
  received: number;
  /** Those of `received` that SQS had given out before, to us or to others. */
  redelivered: number;
  /** Messages in Postgres, each batch of them with its job. */
  staged: number;
  batches: number;
  /** Rows that waited to be masked when the database was last asked. */
  backlog: number;
}

export interface LoaderSummary extends Omit<LoaderProgress, 'backlog'> {
  /** Messages given back to the queue because they could not be staged before the end. */
  released: number;
  seconds: number;
  /** 1 where stopping took longer than SHUTDOWN_GRACE_SECONDS, or was cut short. */
  exitCode: 0 | 1;
}
