import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { renderStatus } from '../../src/status.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { close, inTransaction, mask, maskAll, message, stage } from '../support/staging.ts';
import { sqlstate } from '../support/sqlstate.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
beforeEach(async () => {
  await db.superuser.query(`
    truncate staging.batches, staging.raw_messages, staging.workers, staging.quarantine, public.user_logins;
    update staging.totals set batches = 0, inserted = 0, duplicates = 0, quarantined = 0, lost_batches = 0`);
});
afterAll(() => db.drop());

async function status(): Promise<Record<string, unknown>> {
  return (await db.pool('auditor').query('select * from staging.status()')).rows[0];
}

const clean = async (keep?: string | null): Promise<number> => {
  const call = keep === undefined ? 'staging.clean_ledger()' : 'staging.clean_ledger(keep => $1::interval)';
  const { rows } = await db
    .pool('worker')
    .query(`select ${call} as removed`, keep === undefined ? [] : [keep]);
  return rows[0].removed;
};

/** Three acknowledged batches, one lost, one masked and one staged. */
async function makeHistory(): Promise<void> {
  const [again, malformed] = [message(), message('no JSON')];
  for (const messages of [[again, message(), malformed], [again, message()], [malformed]]) {
    await close(db, (await maskAll(db, messages)).batchId);
  }
  const lost = await stage(db, [message()]);
  await db.superuser.query('truncate staging.raw_messages');
  await mask(db, lost);
  await maskAll(db, [message()]);
  await stage(db, [message(), message()]);
}

const age = (interval: string) =>
  db.superuser.query(
    `update staging.batches set acked_at = acked_at - $1::interval, lost_at = lost_at - $1::interval,
            staged_at = staged_at - $1::interval, masked_at = masked_at - $1::interval`,
    [interval],
  );

test('the status of an empty database shows zeros, unsealed, and the active keys', async () => {
  expect(await status()).toMatchObject({
    staged_rows: '0',
    oldest_unmasked_seconds: null,
    pending_batches: '0',
    batches: '0',
    loaded: '0',
    duplicates: '0',
    quarantined: '0',
    in_quarantine: '0',
    lost_batches: '0',
    sealed: false,
    residue_bodies: '0',
    residue_seconds: null,
    residue_slot_seconds: null,
    residue_held_by: null,
    keys: expect.arrayContaining([
      { purpose: 'token', field: 'ip', version: expect.any(Number), state: 'active' },
    ]),
  });
});

test('the status shows totals of batches and messages', async () => {
  await makeHistory();
  const figures = await status();
  expect(figures).toMatchObject({
    staged_rows: '2',
    pending_batches: '2',
    batches: '6',
    loaded: '4',
    duplicates: '2',
    quarantined: '1',
    in_quarantine: '1',
    lost_batches: '1',
  });
  expect(figures['oldest_unmasked_seconds']).toBeGreaterThan(0);
});

const residue = async () => {
  const { residue_bodies, residue_seconds, residue_slot_seconds, residue_held_by } = await status();
  return { residue_bodies, residue_seconds, residue_slot_seconds, residue_held_by };
};
const recycle = () =>
  db.pool('worker').query('select staging.recycle_slots(filled_until => clock_timestamp())');

describe('the residue of finished batches in staging', () => {
  test('is shown with its age, and excludes pending batches', async () => {
    await close(db, (await maskAll(db, [message(), message()])).batchId);
    await close(db, (await maskAll(db, [message()])).batchId);
    await maskAll(db, [message()]);
    await stage(db, [message()]);
    await db.superuser.query(
      `update staging.batches set acked_at = acked_at - interval '90 seconds' where rows = 2`,
    );
    const figures = await residue();
    expect(figures).toMatchObject({ residue_bodies: '3' });
    for (const seconds of [figures.residue_seconds, figures.residue_slot_seconds]) {
      expect(seconds).toBeGreaterThanOrEqual(90);
      expect(Number.isInteger(seconds)).toBe(true);
    }
  });

  test('includes lost batches and rows without a batch in the ledger', async () => {
    const lost = await stage(db, [message()]);
    await db.superuser.query('update staging.batches set lost_at = now() where batch_id = $1', [lost]);
    await db.superuser.query(
      `insert into staging.inbox
       select gen_random_uuid(), array[m, m], '{r,r}', array[now(), now()], '{1,1}', '{b,b}' from gen_random_uuid() m`,
    );
    expect(await residue()).toMatchObject({ residue_bodies: '3' });
  });

  test('is zero after the slots are recycled', async () => {
    await close(db, (await maskAll(db, [message()])).batchId);
    await recycle();
    await recycle();
    expect(await residue()).toMatchObject({ residue_bodies: '0', residue_slot_seconds: null });
  });

  test('shows the age of a slot with only rolled-back rows, and who holds it', async () => {
    const client = await db.superuser.connect();
    await client.query(
      `begin;
       insert into staging.inbox
         select gen_random_uuid(), array[gen_random_uuid()], '{r}', array[now()], '{1}', '{b}';
       rollback`,
    );
    await recycle();
    const { rows } = await client.query(
      `update staging.slots set closed_at = closed_at - interval '70 seconds' where not is_open
       returning pg_backend_pid() as pid`,
    );
    await client.query('begin; lock table staging.raw_messages in access share mode');
    const figures = await residue();
    expect(figures).toMatchObject({
      residue_bodies: '0',
      residue_seconds: null,
      residue_held_by: [rows[0].pid],
    });
    expect(figures.residue_slot_seconds).toBeGreaterThanOrEqual(70);
    await client.query('commit');
    client.release();
  });

  test.each(['auditor', 'custodian', 'worker'] as const)(
    'is not held by an open transaction in which a %s has read the status',
    async (login) => {
      await close(db, (await maskAll(db, [message()])).batchId);
      await inTransaction(db.pool(login), async (client) => {
        await client.query('select * from staging.status()');
        const { rows } = await db.superuser.query(
          `select relation::regclass::text from pg_locks
            where pid = $1 and relation::regclass::text like 'staging.raw_messages%'`,
          [(await client.query('select pg_backend_pid() as pid')).rows[0].pid],
        );
        expect(rows).toEqual([]);
      });
    },
  );

  test('is unknown while a lock prevents counting, and the rest of the status is shown', async () => {
    await close(db, (await maskAll(db, [message()])).batchId);
    const client = await db.superuser.connect();
    await client.query(
      'begin; lock table staging.raw_messages_0, staging.raw_messages_1, staging.raw_messages_2',
    );
    const { rows } = await client.query('select pg_backend_pid() as pid');
    expect(await status()).toMatchObject({
      residue_bodies: null,
      residue_held_by: [rows[0].pid],
      batches: '1',
    });
    await client.query('rollback');
    client.release();
  });
});

test('the backlog counts rows that are staged and neither masked nor lost', async () => {
  await makeHistory();
  const { rows } = await db.pool('loader').query('select * from staging.backlog()');
  expect(rows).toEqual([
    { staged_rows: '2', oldest_staged_at: expect.any(Date), oldest_age_seconds: expect.any(Number) },
  ]);
});

test('cleaning the ledger removes old finished batches and does not change the status', async () => {
  await makeHistory();
  await age('31 days');
  const { oldest_unmasked_seconds: _, ...before } = await status();
  expect(await clean()).toBe(4);
  const { rows } = await db.superuser.query('select count(*)::int as left from staging.batches');
  expect(rows).toEqual([{ left: 2 }]);
  expect(await status()).toMatchObject(before);
  expect(await clean()).toBe(0);
  expect(await status()).toMatchObject(before);
});

test('cleaning the ledger keeps recent and unfinished batches', async () => {
  await makeHistory();
  await age('29 days');
  expect(await clean()).toBe(0);
  expect(await clean('28 days')).toBe(4);
});

test.each(['59 minutes', '-1 day', null])('keep => %s is out of range', async (keep) => {
  expect(await sqlstate(clean(keep))).toBe('22023');
});

test('cleaning the ledger removes workers without a heartbeat for a day', async () => {
  await db.superuser.query(
    `insert into staging.workers values ('old', now() - interval '25 hours'), ('new', now() - interval '23 hours')`,
  );
  await clean();
  const { rows } = await db.superuser.query('select worker_id from staging.workers');
  expect(rows).toEqual([{ worker_id: 'new' }]);
});

test('a batch that is acknowledged after it was marked lost counts once', async () => {
  const { batchId } = await maskAll(db, [message()]);
  await db.superuser.query('truncate staging.raw_messages');
  await mask(db, batchId);
  await close(db, batchId);
  await age('31 days');
  const before = await status();
  expect(await clean()).toBe(1);
  expect(await status()).toMatchObject({ ...before, batches: '1', loaded: '1' });
});

test('the rendered status shows the number of ip values that are not addresses, unless it is zero', () => {
  const figures = {
    queue: { visible: 0, inFlight: 0, deadLettered: null },
    staged: { rows: 0, oldestUnmaskedSeconds: null },
    batches: { total: 0, pending: 0, lost: 0 },
    loaded: 0,
    duplicates: 0,
    quarantined: { total: 0, now: 0 },
    residue: { bodies: 0, oldestSeconds: null, slotSeconds: null, heldBy: [] },
    sealed: false,
    keys: [],
    rotations: [],
    erasures: [],
  };
  expect(renderStatus({ ...figures, noAddresses: 4711 })).toContain('4711');
  expect(renderStatus({ ...figures, noAddresses: 0 })).not.toContain('address');
});
