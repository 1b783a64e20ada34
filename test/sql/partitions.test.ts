import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { StackLogin } from '../../local/stack/logins.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { maskAll, message, stage } from '../support/staging.ts';
import { sqlstate } from '../support/sqlstate.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

/** Returns the number of partitions that the call created, and the number of those still missing. */
const maintainPartitions = async (monthsAhead: number | null): Promise<{ made: number; missing: number }> => {
  const { rows } = await db
    .pool('worker')
    .query('select * from staging.maintain_partitions(months_ahead => $1)', [monthsAhead]);
  return rows[0];
};
const createPartitions = async (monthsAhead: number | null): Promise<number> =>
  (await maintainPartitions(monthsAhead)).made;

/** The start of a month relative to the current one, by the database's clock, in milliseconds. */
async function monthStart(offset: number): Promise<number> {
  const { rows } = await db.superuser.query<{ ms: string }>(
    `select extract(epoch from (date_trunc('month', now() at time zone 'UTC') + make_interval(months => $1))
       at time zone 'UTC') * 1000 as ms`,
    [offset],
  );
  return Number(rows[0]!.ms);
}

async function partitionOf(id: string): Promise<string> {
  const { rows } = await db.superuser.query<{ name: string }>(
    'select tableoid::regclass::text as name from public.user_logins where message_id = $1',
    [id],
  );
  return rows[0]!.name;
}

const nameOf = (start: number): string =>
  `user_logins_${new Date(start).toISOString().slice(0, 7).replace('-', '_')}`;

/** Calls `use` while a login has an open transaction in which it has run a statement. */
async function withOpenTransaction(
  login: StackLogin,
  statement: string,
  use: () => Promise<void>,
): Promise<void> {
  const holder = await db.pool(login).connect();
  try {
    await holder.query('begin');
    await holder.query(statement);
    await use();
  } finally {
    await holder.query('rollback');
    holder.release();
  }
}

async function minutesUntilJob(task: string): Promise<number> {
  const { rows } = await db.superuser.query<{ minutes: number }>(
    `select extract(epoch from max(run_at) - now())::float8 / 60 as minutes from graphile_worker.jobs
      where task_identifier = $1`,
    [task],
  );
  return rows[0]!.minutes;
}

async function load(sentAt: number): Promise<string> {
  const login = { ...message(), sentAt };
  await maskAll(db, [login]);
  return login.id;
}

test('a new database has partitions for the last month, this month and the next three', async () => {
  for (const offset of [-1, 0, 1, 2, 3]) {
    const start = await monthStart(offset);
    expect(await partitionOf(await load(start))).toMatch(new RegExp(`${nameOf(start)}$`));
  }
});

test('a partition ends a millisecond before the next month begins, in UTC', async () => {
  const [start, next] = [await monthStart(0), await monthStart(1)];
  expect(await partitionOf(await load(next - 1))).toMatch(new RegExp(`${nameOf(start)}$`));
});

test('a login from any other time goes to the default partition', async () => {
  for (const sentAt of [0, await monthStart(-2), await monthStart(200)]) {
    expect(await partitionOf(await load(sentAt))).toMatch(/user_logins_default$/);
  }
});

test('partitions are created ahead, and rows of the default partition move into them unchanged', async () => {
  const start = await monthStart(5);
  const early = await load(start);
  const beyond = await load(await monthStart(7));
  const row = 'select * from public.user_logins where message_id = $1';
  const { rows: before } = await db.superuser.query(row, [early]);

  expect(await createPartitions(6)).toBe(3);

  expect(await partitionOf(early)).toMatch(new RegExp(`${nameOf(start)}$`));
  expect((await db.superuser.query(row, [early])).rows).toEqual(before);
  expect(await partitionOf(beyond)).toMatch(/user_logins_default$/);
  expect(await createPartitions(6)).toBe(0);
});

test('a message that is redelivered after its row has moved is still a duplicate', async () => {
  const login = { ...message(), sentAt: await monthStart(8) };
  await maskAll(db, [login]);
  await createPartitions(8);
  await maskAll(db, [login]);
  const { rowCount } = await db.superuser.query('select from public.user_logins where message_id = $1', [
    login.id,
  ]);
  expect(rowCount).toBe(1);
});

test('two concurrent calls create each partition once', async () => {
  const made = await Promise.all([createPartitions(10), createPartitions(10)]);
  expect(made.sort()).toEqual([0, 2]);
});

describe('while an analyst has an open transaction on user_logins', () => {
  test('no partition is created, masking does not wait, and the job runs again within minutes', async () => {
    await withOpenTransaction('analyst', 'select from public.user_logins', async () => {
      const [answer, masked] = await Promise.all([maintainPartitions(12), load(await monthStart(0))]);
      expect(answer).toEqual({ made: 0, missing: 2 });
      expect(await partitionOf(masked)).toMatch(/user_logins_/);
      expect(await minutesUntilJob('maintain_partitions')).toBeLessThanOrEqual(5);
    });
    expect(await maintainPartitions(12)).toEqual({ made: 2, missing: 0 });
  });

  test('masking continues while maintain_partitions waits', async () => {
    await withOpenTransaction('analyst', 'select from public.user_logins', async () => {
      const maintaining = maintainPartitions(14);
      const client = await db.pool('worker').connect();
      await client.query(`set statement_timeout = '5s'`);
      const batchId = await stage(db, [message()]);
      expect(await sqlstate(client.query('select masking.mask_batch($1)', [batchId]))).toBe('none');
      client.release(true);
      expect((await maintaining).made).toBe(0);
    });
    expect((await maintainPartitions(14)).made).toBe(2);
  });
});

test('an advisory lock, which any login can take, does not prevent new partitions', async () => {
  const lock = `select pg_advisory_xact_lock(hashtextextended('masked_logins.maintain_partitions', 0))`;
  await withOpenTransaction('analyst', lock, async () =>
    expect(await maintainPartitions(16)).toEqual({ made: 2, missing: 0 }),
  );
});

test('every partition has the owner and the primary key of its table, and no privileges', async () => {
  const { rows } = await db.superuser.query(
    `select p.relname, p.relowner::regrole::text as owner, p.relacl::text as acl,
            (select array_agg(pg_get_indexdef(i.indexrelid)
               ~ 'USING btree \\(user_id, create_date, message_id\\)') from pg_index i
              where i.indrelid = p.oid and i.indisprimary) as keys
       from pg_inherits h join pg_class p on p.oid = h.inhrelid
      where h.inhparent = 'public.user_logins'::regclass`,
  );
  expect(rows.length).toBeGreaterThan(5);
  for (const { owner, acl, keys } of rows) {
    expect({ owner, acl, keys }).toEqual({ owner: 'logins_owner', acl: null, keys: [true] });
  }
});

test.each([-1, 121, null])('%s months ahead is out of range', async (months) => {
  expect(await sqlstate(createPartitions(months))).toBe('22023');
});

test('zero months ahead is in range', async () => {
  expect(await createPartitions(0)).toBe(0);
});
