import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { unseal } from '../../src/database/kek.ts';
import { close, maskAll, message, stage } from '../support/staging.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
beforeEach(async () => {
  await db.superuser.query(`
    truncate staging.batches, staging.raw_messages, staging.workers;
    delete from graphile_worker._private_jobs`);
});
afterAll(() => db.drop());

interface Job {
  locked_by: string | null;
  attempts: number;
  due: boolean;
}

async function jobOf(batchId: string): Promise<Job | undefined> {
  const { rows } = await db.superuser.query<Job>(
    `select locked_by, attempts, run_at <= now() as due from graphile_worker.jobs where key = $1`,
    [`mask_batch:${batchId}`],
  );
  return rows[0];
}

const changeJob = (batchId: string, change: string) =>
  db.superuser.query(`update graphile_worker._private_jobs set ${change} where key = $1`, [
    `mask_batch:${batchId}`,
  ]);

const sweep = async (overdue?: string) => {
  const { rows } =
    overdue === undefined
      ? await db.pool('worker').query('select staging.sweep_batches() as swept')
      : await db.pool('worker').query('select staging.sweep_batches(overdue => $1) as swept', [overdue]);
  return rows[0].swept as number;
};

const overdueBatch = async () => {
  const batchId = await stage(db, [message()]);
  await db.superuser.query(
    `update staging.batches set staged_at = now() - interval '1 minute' where batch_id = $1`,
    [batchId],
  );
  return batchId;
};

const beat = async (worker: string) => {
  const { rows } = await db
    .pool('worker')
    .query('select staging.heartbeat(worker_id => $1) as freed', [worker]);
  return rows[0].freed as number;
};

const expireHeartbeat = (worker: string) =>
  db.superuser.query(
    `update staging.workers set seen_at = now() - interval '31 seconds' where worker_id = $1`,
    [worker],
  );

describe('sweep_batches', () => {
  test('adds the job of an overdue batch if it is missing', async () => {
    const batchId = await overdueBatch();
    await db.superuser.query('delete from graphile_worker._private_jobs');
    expect(await sweep()).toBe(1);
    expect(await jobOf(batchId)).toMatchObject({ locked_by: null, attempts: 0, due: true });
  });

  test.each([
    ['has given up', 'attempts = max_attempts'],
    ['is to be retried much later', `attempts = 5, run_at = now() + interval '10 minutes'`],
  ])('makes the job of an overdue batch due if the job %s', async (_, change) => {
    const batchId = await overdueBatch();
    await changeJob(batchId, change);
    expect(await sweep()).toBe(1);
    expect(await jobOf(batchId)).toMatchObject({ attempts: 0, due: true });
    // graphile-worker keeps a job that has given up and adds another.
    const { rowCount } = await db.superuser.query(
      'select from graphile_worker.jobs where attempts < max_attempts',
    );
    expect(rowCount).toBe(1);
  });

  test.each([
    ['a job that is due', ''],
    ['a job that is running', `locked_by = 'w', locked_at = now(), attempts = max_attempts`],
    ['a job that is due soon', `attempts = 3, run_at = now() + interval '30 seconds'`],
  ])('does not change %s', async (_, change) => {
    const batchId = await overdueBatch();
    if (change !== '') await changeJob(batchId, change);
    const before = await jobOf(batchId);
    expect(await sweep()).toBe(0);
    expect(await jobOf(batchId)).toEqual(before);
  });

  test('adds no job for a batch that is recent, acknowledged or lost', async () => {
    const young = await stage(db, [message()]);
    const { batchId: acked } = await maskAll(db, [message()]);
    await close(db, acked);
    const lost = await overdueBatch();
    await db.superuser.query('update staging.batches set lost_at = now() where batch_id = $1', [lost]);
    await db.superuser.query('delete from graphile_worker._private_jobs');
    expect(await sweep()).toBe(0);
    expect(await jobOf(young)).toBeUndefined();
    expect(await sweep('0 seconds')).toBe(1);
    expect(await jobOf(young)).toBeDefined();
  });

  test('adds the job of a masked batch that is not acknowledged', async () => {
    const { batchId } = await maskAll(db, [message()]);
    await db.superuser.query('delete from graphile_worker._private_jobs');
    expect(await sweep('0 seconds')).toBe(1);
    expect(await jobOf(batchId)).toBeDefined();
  });

  test('does nothing while the database is sealed', async () => {
    await overdueBatch();
    await db.superuser.query('delete from graphile_worker._private_jobs');
    await db.pool('custodian').query('select masking.seal()');
    expect(await sweep()).toBe(0);
    await unseal(db.pool('worker'), db.kek);
    expect(await sweep()).toBe(1);
  });
});

describe('a heartbeat', () => {
  const LOCKED = `attempts = 1, locked_at = now() - interval '31 seconds'`;

  test('records the worker once, however often it is repeated', async () => {
    await beat('alive');
    await beat('alive');
    const { rows } = await db.superuser.query('select worker_id from staging.workers');
    expect(rows).toEqual([{ worker_id: 'alive' }]);
  });

  test('frees the job of a worker whose heartbeat has stopped, and removes that worker', async () => {
    await beat('dead');
    const batchId = await stage(db, [message()]);
    await changeJob(batchId, `${LOCKED}, locked_by = 'dead'`);
    await expireHeartbeat('dead');
    expect(await beat('alive')).toBe(1);
    expect(await jobOf(batchId)).toMatchObject({ locked_by: null });
    const { rows } = await db.superuser.query('select worker_id from staging.workers');
    expect(rows).toEqual([{ worker_id: 'alive' }]);
  });

  test('frees the job of a worker that died before its first heartbeat', async () => {
    const batchId = await stage(db, [message()]);
    await changeJob(batchId, `${LOCKED}, locked_by = 'stillborn'`);
    expect(await beat('alive')).toBe(1);
    expect(await jobOf(batchId)).toMatchObject({ locked_by: null });
  });

  test('does not free the long job of a worker that is alive', async () => {
    await beat('busy');
    const batchId = await stage(db, [message()]);
    await changeJob(batchId, `${LOCKED}, locked_by = 'busy'`);
    expect(await beat('alive')).toBe(0);
    expect(await jobOf(batchId)).toMatchObject({ locked_by: 'busy' });
  });

  test('does not free the job of a worker that has just started', async () => {
    const batchId = await stage(db, [message()]);
    await changeJob(batchId, `attempts = 1, locked_at = now() - interval '5 seconds', locked_by = 'new'`);
    expect(await beat('alive')).toBe(0);
    expect(await jobOf(batchId)).toMatchObject({ locked_by: 'new' });
  });

  test('frees only the jobs of dead workers', async () => {
    await beat('busy');
    const [ofDead, ofBusy] = [await stage(db, [message()]), await stage(db, [message()])];
    await changeJob(ofDead, `${LOCKED}, locked_by = 'dead'`);
    await changeJob(ofBusy, `${LOCKED}, locked_by = 'busy'`);
    expect(await beat('alive')).toBe(1);
    expect(await jobOf(ofDead)).toMatchObject({ locked_by: null });
    expect(await jobOf(ofBusy)).toMatchObject({ locked_by: 'busy' });
  });
});
