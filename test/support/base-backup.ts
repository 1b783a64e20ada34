import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync } from 'node:fs';
import path from 'node:path';
import type { Writable } from 'node:stream';
import pg from 'pg';
import { asUser, makePrivateDirectory, serverUser } from '../../local/postgres/os-user.ts';

/**
 * Takes a base backup as pg_basebackup does: over a replication connection, by the protocol's BASE_BACKUP. What it
 * leaves out (the contents of unlogged tables) the server itself leaves out. The WAL it needs is included.
 *
 * @param superuserUrl of any database of the server
 * @param directory where a server of its own may then be started; made here
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

/** What the protocol's messages begin with inside CopyData. */
const NEW_ARCHIVE = 'n'.charCodeAt(0);
const ARCHIVE_DATA = 'd'.charCodeAt(0);

/** The replies to BASE_BACKUP: two sets of rows, COPY data, and a last set of rows. What `pg` calls a submittable. */
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
    // There are no tablespaces, so there is one archive.
    if (this.#archives > 1) this.#error = new Error('the server has tablespaces');
    if (chunk[0] === ARCHIVE_DATA) {
      // A copy, because the driver uses its buffer again.
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
