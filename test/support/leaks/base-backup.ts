import pg from 'pg';

/**
 * Takes a base backup like `pg_basebackup`, as tar archives with the WAL that they need.
 *
 * @param connectionString connection string of a superuser
 */
export async function baseBackup(connectionString: string): Promise<Buffer> {
  // The types lack `replication`, and a client's `connection`.
  const config = { connectionString, replication: 'database' };
  const client = new pg.Client(config) as pg.Client & { connection: NodeJS.EventEmitter };
  client.on('error', () => {});
  await client.connect();
  const chunks: Buffer[] = [];
  client.connection.on('copyData', ({ chunk }: { chunk: Buffer }) => {
    // The data of archives and of the manifest begins with `d`. Other messages begin with other letters.
    if (chunk[0] === 0x64) chunks.push(Buffer.from(chunk.subarray(1)));
  });
  await client.query(`BASE_BACKUP (LABEL 'leak scan', CHECKPOINT 'fast', WAL true)`);
  await client.end();
  return Buffer.concat(chunks);
}
