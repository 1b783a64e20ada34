import type { ClientBase, Pool } from 'pg';
import { FatalError } from '../errors.ts';
import { withConnection } from './pool.ts';

/**
 * Refuses a pooler in transaction mode. It gives each transaction another session of Postgres, so locks, LISTEN and SET
 * would affect other clients. docs/poolers.md says what works through a pooler.
 *
 * @param first a connection that is not in a transaction
 * @param second another one
 * @param at `host:port/database`, for people
 * @throws {FatalError} if a connection does not keep its own session
 */
export async function refuseTransactionPooler(
  first: ClientBase,
  second: ClientBase,
  at: string,
): Promise<void> {
  // The first two answers reveal a pooler that reuses the last session. The second and third reveal one that
  // alternates.
  const pids: number[] = [];
  for (const client of [first, second, second, first]) pids.push(await backendOf(client));
  const [one, two] = pids;
  if (one !== two && pids[2] === two && pids[3] === one) return;
  throw new FatalError(
    `a pooler in transaction mode answers at ${at}, and this command needs its own session: set DATABASE_URL to the address of Postgres itself, or of a pooler in session mode (docs/poolers.md)`,
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
