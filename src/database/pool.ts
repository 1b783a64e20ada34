import pg from 'pg';
import { CONNECT_TIMEOUT_MS } from './client.ts';
import { pinSession } from './session.ts';

/**
 * A connection pool. Libraries use it, too, instead of pools of their own whose lifetime cannot be controlled.
 *
 * @param options `max` connections; `applicationName` is what `pg_stat_activity` shows, unless the connection string
 *   sets it; `role` is the role that the sessions act as
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
    // If a host disappears without a FIN (a failover), a connection must not hang for hours.
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
    // Awaited before the connection is used. Statements, because poolers refuse start-up parameters, and `options`
    // belongs to the user.
    onConnect: async (client) => {
      await pinSession(client);
      if (role !== undefined) await client.query(`set role ${role}`);
    },
  });
  // A connection that breaks while idle is replaced at its next use. Without a listener, it would end the process.
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
