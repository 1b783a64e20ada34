import pg from 'pg';

/**
 * A base backup as `pg_basebackup` gets it: tar archives, and the WAL that they need.
 *
 * @param connectionString of a superuser
 */
export async function baseBackup(connectionString: string): Promise<Buffer> {
  // The types do not know of `replication`, nor of the connection below a client.
  const config = { connectionString, replication: 'database' };
  const client = new pg.Client(config) as pg.Client & { connection: NodeJS.EventEmitter };
  client.on('error', () => {});
  await client.connect();
  const chunks: Buffer[] = [];
  client.connection.on('copyData', ({ chunk }: { chunk: Buffer }) => {
    // Pieces of archives and of the manifest begin with `d`; names, progress and marks with other letters.
    if (chunk[0] === 0x64) chunks.push(Buffer.from(chunk.subarray(1)));
  });
  await client.query(`BASE_BACKUP (LABEL 'leak scan', CHECKPOINT 'fast', WAL true)`);
  await client.end();
  return Buffer.concat(chunks);
}
