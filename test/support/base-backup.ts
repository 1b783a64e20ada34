import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync } from 'node:fs';
import path from 'node:path';
import type { Writable } from 'node:stream';
import pg from 'pg';
import { asUser, makePrivateDirectory, serverUser } from '../../local/postgres/os-user.ts';

/**
 * Takes a base backup like pg_basebackup, with the command BASE_BACKUP over a replication connection. The server leaves
 * out the contents of unlogged tables. The backup includes the WAL that it needs.
 *
 * @param superuserUrl connection string of a superuser, to any database of the server
 * @param directory new data directory in which a server can then be started
 * @see https://www.postgresql.org/docs/current/protocol-replication.html#PROTOCOL-REPLICATION-BASE-BACKUP
 */
export async function takeBaseBackup(superuserUrl: string, directory: string): Promise<void> {
  mkdirSync(path.dirname(directory), { recursive: true });
  makePrivateDirectory(directory, serverUser());
  const tar = spawn('tar', ['-x', '-f', '-', '-C', directory, '--no-same-owner'], {
    ...asUser(serverUser()),
    cwd: directory,
    stdio: ['pipe', 'ignore', 'inherit'],
  });
  const extracted = once(tar, 'close');
  const client = new pg.Client({ connectionString: superuserUrl, replication: 'true' } as pg.ClientConfig);
  await client.connect();
  try {
    const backup = new BaseBackup(tar.stdin);
    client.query(backup);
    await backup.taken;
  } finally {
    tar.stdin.end();
    await client.end();
  }
  const [code] = (await extracted) as [number | null];
  if (code !== 0) throw new Error(`tar could not extract the base backup (${code})`);
}

/** The first byte of a CopyData message says what it contains. */
const NEW_ARCHIVE = 'n'.charCodeAt(0);
const ARCHIVE_DATA = 'd'.charCodeAt(0);

/** Handles the reply to BASE_BACKUP: two result sets, COPY data, and another result set. */
class BaseBackup implements pg.Submittable {
  readonly #archive: Writable;
  readonly #outcome = Promise.withResolvers<void>();
  /** Settles when the server has sent everything. */
  readonly taken = this.#outcome.promise;
  #archives = 0;
  #error: Error | undefined;

  constructor(archive: Writable) {
    this.#archive = archive;
  }

  submit(connection: pg.Connection): void {
    connection.query(`BASE_BACKUP (LABEL 'test', CHECKPOINT 'fast', WAL true, MANIFEST 'no')`);
  }

  handleCopyData({ chunk }: { chunk: Buffer }): void {
    if (chunk[0] === NEW_ARCHIVE) this.#archives += 1;
    // Without tablespaces there is one archive.
    if (this.#archives > 1) this.#error = new Error('the server has tablespaces');
    if (chunk[0] === ARCHIVE_DATA) {
      // A copy, because the driver reuses its buffer.
      this.#archive.write(Buffer.from(chunk.subarray(1)));
    }
  }

  handleError(error: Error): void {
    this.#outcome.reject(error);
  }

  handleReadyForQuery(): void {
    if (this.#error !== undefined) this.#outcome.reject(this.#error);
    else if (this.#archives === 0) this.#outcome.reject(new Error('the server sent no archive'));
    else this.#outcome.resolve();
  }

  handleRowDescription(): void {}
  handleDataRow(): void {}
  handleCommandComplete(): void {}
  handleCopyInResponse(): void {}
}
