import type pg from 'pg';
import { codeOf, FatalError, LOCK_NOT_AVAILABLE } from '../errors.ts';
import type { Logger } from '../log.ts';

/** The advisory lock that makes a second `migrate` wait for the first. Any number that nothing else uses will do. */
export const MIGRATE_LOCK = 7_233_916_401n;

/** The lock of graphile-migrate, which does not wait for it. */
export const GRAPHILE_MIGRATE_LOCK = 4_727_445_306_447_283n;

/**
 * Waits until no other process migrates, and makes others wait until the connection's transaction ends. The lock
 * belongs to a transaction, because a lock of a session may stay behind in a pooler.
 *
 * Any login may take an advisory lock. So the wait is limited, and the log says who holds the lock.
 *
 * @param client a connection that nothing else uses, not in a transaction; ending it releases the lock
 * @param waitMs the longest wait, in milliseconds
 * @throws {FatalError} that says who holds the lock
 */
export async function lockMigrations(client: pg.Client, waitMs: number, log: Logger): Promise<void> {
  await client.query('begin');
  // The server's timeouts could end this session while it waits or while the migration runs.
  await client.query(
    `select set_config(s.name, '0', true) from pg_catalog.pg_settings s
      where s.name in ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')`,
  );
  const { rows } = await client.query<{ locked: boolean }>(
    'select pg_catalog.pg_try_advisory_xact_lock($1::bigint) as locked',
    [MIGRATE_LOCK],
  );
  if (rows[0]?.locked === true) return;
  log.info(
    `waiting for another migration, ${Math.ceil(waitMs / 1_000)} s at most: ${await holderOf(client, MIGRATE_LOCK)}`,
  );
  await client.query('savepoint waiting');
  await client.query(`set local lock_timeout = ${waitMs}`);
  try {
    await client.query('select pg_catalog.pg_advisory_xact_lock($1::bigint)', [MIGRATE_LOCK]);
  } catch (error) {
    if (codeOf(error) !== LOCK_NOT_AVAILABLE) throw error;
    await client.query('rollback to savepoint waiting');
    throw new FatalError(await heldFor(client, MIGRATE_LOCK));
  }
}

/** One line about the session that holds a lock for migrating, for an error. */
export async function heldFor(client: pg.ClientBase, lock: bigint): Promise<string> {
  return `somebody else holds the lock for migrating: ${await holderOf(client, lock)}; wait until it ends, or end it (select pg_terminate_backend(pid)), and migrate again`;
}

async function holderOf(client: pg.ClientBase, lock: bigint): Promise<string> {
  const { rows } = await client.query<{ pid: number; login: string; since: string }>(
    `select l.pid, coalesce(a.usename, 'unknown') as login, coalesce(to_char(a.backend_start, 'YYYY-MM-DD HH24:MI:SSOF'), 'unknown') as since
       from pg_catalog.pg_locks l left join pg_catalog.pg_stat_activity a on a.pid = l.pid
      where l.locktype = 'advisory' and l.granted and l.objsubid = 1
        and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
        and (l.classid::bigint << 32 | l.objid::bigint) = $1::bigint`,
    [lock],
  );
  const [holder] = rows;
  return holder === undefined
    ? 'no session any more'
    : `pid ${holder.pid}, login ${holder.login}, connected since ${holder.since}`;
}
