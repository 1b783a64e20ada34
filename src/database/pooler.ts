import type { ClientBase, Pool } from 'pg';
import { FatalError } from '../errors.ts';
import { withConnection } from './pool.ts';

/**
 * Refuses a pooler in transaction mode, which gives each transaction another session of Postgres: locks, LISTEN and SET
 * would end up with whoever comes next. docs/poolers.md says what may go through one.
 *
 * @param first a connection that is in no transaction
 * @param second another one
 * @param at `host:port/database`, for people
 * @throws {FatalError} where the two are not a session each
 */
export async function refuseTransactionPooler(
  first: ClientBase,
  second: ClientBase,
  at: string,
): Promise<void> {
  // A pooler that gives out the session given back last shows itself by the first two answers, one that takes turns
  // by the second and the third.
  const pids: number[] = [];
  for (const client of [first, second, second, first]) pids.push(await backendOf(client));
  const [one, two] = pids;
  if (one !== two && pids[2] === two && pids[3] === one) return;
  throw new FatalError(
    `a pooler in transaction mode answers at ${at}, and this command needs a session of its own: give it in DATABASE_URL the address of Postgres itself, or of a pooler in session mode (docs/poolers.md)`,
  );
}

/** The same, with two connections of a pool. */
export async function refuseTransactionPooling(pool: Pool, at: string): Promise<void> {
  await withConnection(pool, (first) =>
    withConnection(pool, (second) => refuseTransactionPooler(first, second, at)),
  );
}

async function backendOf(client: ClientBase): Promise<number> {
  const { rows } = await client.query<{ pid: number }>('select pg_catalog.pg_backend_pid() as pid');
  return rows[0]!.pid;
}
