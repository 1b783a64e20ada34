import pg from 'pg';

/** How long a connection may take to open before the attempt counts as failed, in milliseconds. */
export const CONNECT_TIMEOUT_MS = 10_000;

/**
 * A single connection, not yet open. If it breaks, its next query fails.
 *
 * @param applicationName what `pg_stat_activity` shows, unless the connection string sets it
 */
export function createClient(connectionString: string, applicationName: string): pg.Client {
  const client = new pg.Client({
    connectionString,
    application_name: applicationName,
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
  });
  // A broken connection without a listener ends the process.
  client.on('error', () => {});
  return client;
}
