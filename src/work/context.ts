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
}
