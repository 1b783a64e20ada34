import pg from 'pg';
import { CONNECT_TIMEOUT_MS } from './client.ts';
import { pinSession } from './session.ts';

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

/**
 * Lends a connection of a pool. If `use` fails or takes too long, the connection is closed and not used again. Closing
 * it rolls back and, unlike ROLLBACK, cannot fail.
 *
 * @param timeoutMs the longest time for `use`, in milliseconds; its queries then fail
 * @throws any error of `use`, or of `pg` if there is no connection
 */
export async function withConnection<T>(
  pool: pg.Pool,
  use: (client: pg.PoolClient) => Promise<T>,
  timeoutMs?: number,
): Promise<T> {
  const client = await pool.connect();
  let isReleased = false;
  const release = (close: boolean): void => {
    if (!isReleased) client.release(close);
    isReleased = true;
  };
  const timer = timeoutMs === undefined ? undefined : setTimeout(() => release(true), timeoutMs);
  try {
    const result = await use(client);
    release(false);
    return result;
  } catch (error) {
    release(true);
    throw error;
  } finally {
    clearTimeout(timer);
  }
}
