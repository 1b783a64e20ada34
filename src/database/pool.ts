import pg from 'pg';
import { pinSession } from './session.ts';

/** How long a connection may take to open before the attempt counts as failed, in milliseconds. */
export const CONNECT_TIMEOUT_MS = 10_000;

/**
 * A connection pool of our own: the processes here never use a library's, whose lifetime they cannot see.
 *
 * @param connectionString where and as whom to connect
 * @param options `max` connections; `applicationName` is what `pg_stat_activity` shows, unless the connection
 *   string names another; `role`, of ours, is what the sessions act as
 */
export function createPool(
  connectionString: string,
  options: { max: number; applicationName: string; role?: 'logins_owner' },
): pg.Pool {
  const { role } = options;
  const pool = new pg.Pool({
    connectionString,
    max: options.max,
    application_name: options.applicationName,
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    // A host that vanishes without a FIN (a failed-over instance) must not hold a connection for hours.
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
    // Awaited before the connection is anybody's. By statements and not by start-up parameters: poolers refuse those, and
    // `options` belongs to the user.
    onConnect: async (client) => {
      await pinSession(client);
      if (role !== undefined) await client.query(`set role ${role}`);
    },
  });
  // A connection that breaks while idle is replaced at its next use; without a listener it ends the process.
  pool.on('error', () => {});
  pool.on('connect', (client) => client.on('error', () => {}));
  return pool;
}
