import { randomUUID } from 'node:crypto';
import { chmodSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir, totalmem } from 'node:os';
import path from 'node:path';
import pg from 'pg';
import type { StackFile } from '../local/stack/state.ts';
import { readKek, unseal } from '../src/database/kek.ts';
import { createPool } from '../src/database/pool.ts';
import type { Batch } from '../src/load/batcher.ts';
import { removeData, startStack } from '../local/stack/stack.ts';
import { createLogger } from '../src/log.ts';

/** A stack that a benchmark has for itself, unsealed. */
export interface BenchStack {
  localDir: string;
  file: StackFile;
  /** One connection each, so that what is measured runs on one. */
  superuser: pg.Client;
  worker: pg.Client;
  /** For `stageBatch`. */
  loader: pg.Pool;
  version: string;
}

/** A quarter of the machine's memory, in MB: what the Postgres manual recommends for a server's own. */
const QUARTER = Math.floor(totalmem() / 4 / 2 ** 20);

/**
 * As durable as any: fsync, full page writes and synchronous commits are on. No checkpoint comes in the middle of a
 * measurement. A server that has been running for a while recycles its files of WAL, and a fresh one fills each with
 * zeros and flushes it while everybody waits; so that no turn pays for that, they are not filled here.
 *
 * @see https://www.postgresql.org/docs/current/runtime-config-resource.html#GUC-SHARED-BUFFERS
 * @see https://www.postgresql.org/docs/current/runtime-config-wal.html#GUC-WAL-INIT-ZERO
 */
const SETTINGS = {
  shared_buffers: `${QUARTER}MB`,
  max_wal_size: '32GB',
  checkpoint_timeout: '1d',
  wal_init_zero: 'off',
};

/** Starts an embedded Postgres and an emulator in a directory of their own, and removes them afterwards. */
export async function withBenchStack<T>(use: (stack: BenchStack) => Promise<T>): Promise<T> {
  const localDir = mkdtempSync(path.join(tmpdir(), 'masked-logins-bench-'));
  chmodSync(localDir, 0o711);
  const stack = await startStack({
    localDir,
    persistent: false,
    settings: SETTINGS,
    log: createLogger('silent'),
  });
  const { urls, kekFile } = stack.file;
  const superuser = new pg.Client({ connectionString: urls.superuser });
  const worker = new pg.Client({ connectionString: urls.worker });
  const loader = createPool(urls.loader, { max: 2, applicationName: 'masked-logins bench' });
  try {
    await Promise.all([superuser.connect(), worker.connect()]);
    await unsealed(urls.worker, kekFile);
    const { rows } = await superuser.query<{ version: string }>(
      `select current_setting('server_version') as version`,
    );
    return await use({ localDir, file: stack.file, superuser, worker, loader, version: rows[0]!.version });
  } finally {
    await Promise.allSettled([superuser.end(), worker.end(), loader.end()]);
    await stack.stop();
    await removeData(localDir);
    rmSync(localDir, { recursive: true, force: true });
  }
}

async function unsealed(workerUrl: string, kekFile: string): Promise<void> {
  const pool = createPool(workerUrl, { max: 1, applicationName: 'masked-logins bench' });
  try {
    await unseal(pool, await readKek({ file: kekFile }));
  } finally {
    await pool.end();
  }
}

/** Bodies as a batch that has just been received. */
export function batchOf(bodies: readonly string[]): Batch {
  const messages = bodies.map((body) => ({
    messageId: randomUUID(),
    // As long as those of SQS.
    receiptHandle: randomUUID().repeat(8),
    sentAt: Date.now(),
    receiveCount: 1,
    body,
    bytes: Buffer.byteLength(body),
  }));
  return { id: randomUUID(), messages, bytes: messages.reduce((sum, { bytes }) => sum + bytes, 0) };
}

/**
 * Puts so many logins and entries of the vault in place, by the connections that are going to be measured. No checkpoint
 * follows: the first change of each page after one writes the whole page to WAL, and within the few thousand rows of a
 * measurement every change would be a first one.
 */
export async function fill(
  { superuser, worker }: BenchStack,
  logins: number,
  entries: number,
  connections: pg.Client[] = [worker],
): Promise<void> {
  const shares = connections.map((connection) =>
    connection.query('select bench.fill($1, $2)', [
      logins / connections.length,
      entries / connections.length,
    ]),
  );
  await Promise.all(shares);
  await superuser.query('vacuum analyze');
}

/** What is in place in most benchmarks: between the first day and the ten millions of `table-size`. */
export const IN_PLACE = { logins: 500_000, entries: 500_000 };

/** Empties what masking fills. */
export async function clear({ superuser }: BenchStack): Promise<void> {
  await superuser.query('truncate public.user_logins, masking.vault');
}

/** Runs a file of this directory. */
export async function runSql({ superuser }: BenchStack, name: string): Promise<void> {
  await superuser.query(readFileSync(path.join(import.meta.dirname, name), 'utf8'));
}
