import type pg from 'pg';
import { copyIn } from '../database/copy.ts';
import { codeOf, SQLSTATE } from '../errors.ts';
import type { Batch } from './batcher.ts';
import { COPY_INBOX, encodeInbox } from './inbox.ts';

/**
 * How long one attempt may take, in milliseconds. A batch takes some 50 ms; a server that stopped answering without
 * closing the connection would hold it for a quarter of an hour, which is when TCP gives up.
 */
const TIMEOUT_MS = 60_000;

/** Changes nothing, and fails like staging where the login may not stage: another role's, with which an empty queue would seem well. */
export const MAY_STAGE = 'insert into staging.inbox (batch_id) select null where false';

/**
 * Stages a batch: its rows, its row in the ledger and its job, in one transaction.
 *
 * May be called again with the same batch after any error, and has to be: when the connection breaks during COMMIT,
 * nobody knows whether it took place. If it did, the database says so (ML011) and the batch counts as staged.
 *
 * @throws whatever `pg` throws; then the batch is not staged, or it is not known
 */
export async function stageBatch(pool: pg.Pool, batch: Batch): Promise<void> {
  const client = await pool.connect();
  // The pool listens on idle connections only; without a listener a broken connection ends the process.
  client.on('error', ignore);
  // Releasing a connection that is busy cuts it, and with it whatever waits on it.
  const timer = setTimeout(() => release(true), TIMEOUT_MS);
  let isReleased = false;
  const release = (destroy: boolean): void => {
    clearTimeout(timer);
    if (isReleased) return;
    isReleased = true;
    client.release(destroy);
  };
  try {
    await stage(client, batch);
    client.off('error', ignore);
    release(false);
  } catch (error) {
    // Cutting the connection rolls back, and never fails itself.
    release(true);
    if (codeOf(error) !== SQLSTATE.alreadySubmitted) throw error;
  }
}

async function stage(client: pg.PoolClient, batch: Batch): Promise<void> {
  await client.query('begin');
  await copyIn(client, COPY_INBOX, encodeInbox(batch.id, batch.messages));
  await client.query('select staging.submit_batch($1::uuid, $2::int)', [batch.id, batch.messages.length]);
  await client.query('commit');
}

function ignore(): void {}
