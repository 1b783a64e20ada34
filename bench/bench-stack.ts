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

/** An unsealed stack for one benchmark. */
export interface BenchStack {
  localDir: string;
  file: StackFile;
  /** Clients instead of pools, so that each measurement uses one connection. */
  superuser: pg.Client;
  worker: pg.Client;
  /** For `stageBatch`. */
  loader: pg.Pool;
  version: string;
}

/** A quarter of the machine's memory, which Postgres's manual recommends for a dedicated server. */
const SHARED_BUFFERS_MB = Math.floor(totalmem() / 4 / 2 ** 20);

/**
 * Full durability: fsync, full page writes and synchronous commit are on. No checkpoint happens during a measurement. A
 * new server fills each new WAL file with zeros and flushes it, while all sessions wait. A server that has been running
 * for a while recycles its files instead. To measure the latter, `wal_init_zero` is off.
 *
 * @see https://www.postgresql.org/docs/current/runtime-config-resource.html#GUC-SHARED-BUFFERS
 * @see https://www.postgresql.org/docs/current/runtime-config-wal.html#GUC-WAL-INIT-ZERO
 */
const SETTINGS = {
  shared_buffers: `${SHARED_BUFFERS_MB}MB`,
  max_wal_size: '32GB',
  checkpoint_timeout: '1d',
  wal_init_zero: 'off',
};

/** Starts an embedded Postgres and an emulator in a temporary directory, and removes them afterwards. */
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
    await unsealWith(urls.worker, kekFile);
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

async function unsealWith(workerUrl: string, kekFile: string): Promise<void> {
  const pool = createPool(workerUrl, { max: 1, applicationName: 'masked-logins bench' });
  try {
    await unseal(pool, await readKek({ file: kekFile }));
  } finally {
    await pool.end();
  }
}

/** A batch of these bodies, as the loader receives it. */
export function batchOf(bodies: readonly string[]): Batch {
  const messages = bodies.map((body) => ({
    messageId: randomUUID(),
    // As long as a receipt handle of SQS.
    receiptHandle: randomUUID().repeat(8),
    sentAt: Date.now(),
    receiveCount: 1,
    body,
    bytes: Buffer.byteLength(body),
  }));
  return { id: randomUUID(), messages, bytes: messages.reduce((sum, { bytes }) => sum + bytes, 0) };
}

/**
 * Inserts logins and vault entries, over the connections that will be measured. No checkpoint follows, because the
 * first change of a page after a checkpoint writes the whole page to WAL, and a measurement changes most pages only
 * once.
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

/** The number of rows with which most benchmarks start. */
export const PREFILLED = { logins: 500_000, entries: 500_000 };

/** Truncates the logins and the vault. */
export async function clear({ superuser }: BenchStack): Promise<void> {
  await superuser.query('truncate public.user_logins, masking.vault');
}

/** Executes an SQL file of this directory. */
export async function runSql({ superuser }: BenchStack, name: string): Promise<void> {
  await superuser.query(readFileSync(path.join(import.meta.dirname, name), 'utf8'));
}
