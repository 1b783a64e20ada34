import type { SQSClient } from '@aws-sdk/client-sqs';
import type { Pool } from 'pg';
import type { QueueSettings, Settings } from '../config.ts';
import type { Logger } from '../log.ts';

/** What tasks work with. */
export interface WorkContext {
  pool: Pool;
  /** Deletes only: nothing here ever receives. */
  sqs: SQSClient;
  queue: QueueSettings;
  /** Where the key-encryption key is; without one somebody else has to unseal. */
  kek: Settings['kek'];
  log: Logger;
  /** What this worker has acknowledged since it began. */
  done: Done;
}

/** Counts of messages, but for `batches`. */
export interface Done {
  batches: number;
  messages: number;
  loaded: number;
  duplicates: number;
  quarantined: number;
}
