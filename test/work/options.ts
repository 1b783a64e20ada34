import { readSettings, type QueueSettings } from '../../src/config.ts';
import { databaseAt } from '../../src/database/url.ts';
import { createLogger } from '../../src/log.ts';
import type { WorkerOptions } from '../../src/work/worker.ts';
import { TASKS } from '../../tasks/index.ts';
import type { TestDatabase } from '../support/database.ts';

/** A queue at which nothing listens: what is masked stays to be deleted. */
export const NO_QUEUE = {
  url: 'http://127.0.0.1:9/000000000000/none',
  endpoint: 'http://127.0.0.1:9',
  region: 'eu-north-1',
  credentials: { accessKeyId: 'test', secretAccessKey: 'test' },
} satisfies QueueSettings;

/** Options of a worker with the key of its database, which no signal stops and which logs nothing. */
export function workerOptions(db: TestDatabase, others: Partial<WorkerOptions> = {}): WorkerOptions {
  return {
    settings: { ...readSettings({}), kek: { text: db.kek.toString('hex') } },
    database: databaseAt(db.urls.worker),
    queue: NO_QUEUE,
    log: createLogger('silent'),
    stop: new AbortController().signal,
    tasks: TASKS,
    ...others,
  };
}
