import { codeOf, SQLSTATE } from '../src/errors.ts';
import { deleteMessages } from '../src/queue/delete.ts';
import { task, type WorkContext } from '../src/work/task.ts';
import { unsealIfSealed } from '../src/work/unseal.ts';

/** Added by staging.submit_batch, and again by staging.sweep_batches. graphile-worker retries it with growing waits. */
export default task({
  name: 'mask_batch',
  kind: 'masking',
  run: (context, payload) => maskBatch(context, String(payload['batch_id'])),
});

/** Some of a batch's messages could not be deleted from SQS. The job must run again. */
class UnacknowledgedError extends Error {
  override name = 'UnacknowledgedError';
}

/** The result of a batch. */
interface Closed {
  inserted: number;
  duplicates: number;
  quarantined: number;
}

/**
 * Masks a batch, deletes its messages from SQS, and closes it, in this order. Each step begins after the previous one
 * is durable. The job may run again after any of them.
 *
 * @throws {UnacknowledgedError} if SQS did not delete all messages
 * @throws any error of Postgres or SQS
 */
async function maskBatch(context: WorkContext, batchId: string): Promise<void> {
  const { pool, sqs, queue, log, done } = context;
  const receipts = await receiptsOfMasked(context, batchId);
  if (receipts.length === 0) return logWhyEmpty(context, batchId);
  const { deleted, refused, failed } = await deleteMessages(sqs, queue.url, receipts);
  if (failed > 0)
    throw new UnacknowledgedError(`SQS did not delete ${failed} of ${receipts.length} messages`);
  const { rows } = await pool.query<Closed>('select * from staging.close_batch(batch_id => $1)', [batchId]);
  const { inserted, duplicates, quarantined } = rows[0]!;
  done.batches += 1;
  done.messages += receipts.length;
  done.loaded += inserted;
  done.duplicates += duplicates;
  done.quarantined += quarantined;
  log.info({ batch_id: batchId, rows: receipts.length, deleted, refused }, 'masked and acknowledged');
}

/** A batch has no receipts if it is acknowledged already, or gone from staging. */
async function logWhyEmpty({ pool, log }: WorkContext, batchId: string): Promise<void> {
  const { rows } = await pool.query<{ state: string | null }>(
    'select staging.batch_state(batch_id => $1) as state',
    [batchId],
  );
  if (rows[0]?.state === 'acknowledged') {
    log.debug({ batch_id: batchId }, 'the batch is acknowledged already');
  } else {
    log.warn(
      { batch_id: batchId },
      'a crash emptied the batch from staging: SQS delivers its messages again',
    );
  }
}

/** The receipts of a batch. Masking is committed when they are returned, so the messages may be deleted. */
async function receiptsOfMasked(context: WorkContext, batchId: string): Promise<string[]> {
  const mask = () =>
    context.pool.query<{ receipt_handle: string }>(
      'select receipt_handle from masking.mask_batch(batch_id => $1)',
      [batchId],
    );
  const { rows } = await mask().catch(async (error: unknown) => {
    // A crash of Postgres seals the database. Unseal it here instead of waiting for the next heartbeat.
    if (codeOf(error) !== SQLSTATE.sealed || !(await unsealIfSealed(context))) throw error;
    return mask();
  });
  return rows.map((row) => row.receipt_handle);
}
