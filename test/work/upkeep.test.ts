/** Upkeep where no worker runs but now and then, with --once. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import { runWorkerOnce, type OnceSummary } from '../../src/work/worker.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { close, event, maskAll, message } from '../support/staging.ts';
import { workerOptions } from './options.ts';

let db: TestDatabase;
beforeEach(async () => {
  db = await createTestDatabase();
});
afterEach(() => db.drop());

const workOnce = (): Promise<OnceSummary> => runWorkerOnce(workerOptions(db));

test('a worker that runs once drops what is past retention, and goes on with an erasure that has no job', async () => {
  const { batchId } = await maskAll(db, [message(event({ user_id: 'ann', ip: '203.0.113.1' }))]);
  await close(db, batchId);
  await db.pool('custodian').query(`select masking.erase_user('ann', 'DSR-1')`);
  await db.pool('custodian').query('select masking.set_retention(1)');
  await db.superuser.query(`
    delete from graphile_worker._private_jobs;
    set role logins_owner;
    create table public.user_logins_2001_01 partition of public.user_logins for values from ('2001-01-01') to ('2001-02-01');
    reset role`);

  expect(await workOnce()).toMatchObject({ failed: 0 });

  const { rows } = await db.superuser.query(
    `select (select masked_ip from public.user_logins) as token, (select phase from masking.erasures) as erasure,
            to_regclass('public.user_logins_2001_01') as partition`,
  );
  expect(rows).toEqual([{ token: null, erasure: 'done', partition: null }]);
});
