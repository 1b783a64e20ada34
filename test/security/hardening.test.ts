/** Runs the SQL in the section Hardening of docs/operations.md as written. */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { read } from '../house/files.ts';
import { until } from '../support/pipeline.ts';
import { event, mask, message, stage as stageBatch } from '../support/staging.ts';
import { loadPeople, request, revealed, setStage } from '../support/unmask.ts';
import type { Person, Session, Stage } from '../support/unmask.ts';

const [LIST_BYPASSING, HIDE_COUNTERS] = [
  ...read('docs/operations.md')
    .split('\n## Hardening\n')[1]!
    .split('\n## ')[0]!
    .matchAll(/```sql\n([\s\S]*?)```/g),
].map((block) => block[1]!) as [string, string];

/**
 * Counters that show whether a row was added to the vault. `$vault` is its oid, which every login can look
 * up.
 */
const COUNTERS = [
  'select n_tup_ins, n_live_tup from pg_stat_all_tables where relid = $vault',
  'select idx_tup_fetch from pg_stat_all_indexes where relid = $vault',
  'select heap_blks_hit from pg_statio_all_tables where relid = $vault',
  'select tup_inserted from pg_stat_database',
  'select pg_stat_get_tuples_inserted($vault)',
  'select pg_stat_get_ins_since_vacuum($vault)',
  'select pg_stat_get_xact_tuples_inserted($vault)',
  'select pg_relation_size($vault::regclass)',
  'select pg_total_relation_size($vault::regclass)',
  'select pg_database_size(current_database())',
  'select pg_current_wal_insert_lsn()',
  'select pg_current_wal_lsn()',
  'select wal_bytes from pg_stat_wal',
  'select * from pg_stat_io',
  'select checkpoint_lsn from pg_control_checkpoint()',
  'select restart_lsn from pg_replication_slots',
];

let stage: Stage;
let people: Person[];
let loader: Session;
let vault: string;
beforeAll(async () => {
  stage = await setStage();
  people = await loadPeople(stage.db, 2);
  loader = await stage.join('loader', 'logins_loader');
  vault = await loader.value(`select oid from pg_class where relname = 'vault'`);
});
afterAll(() => stage.drop());

const counter = (statement: string) => statement.replace('$vault', vault);

/** Masks an event with this address. Returns the number of rows added to the vault, as a loader sees it. */
async function rowsSeen(ip: string): Promise<number> {
  const worker = new pg.Client({ connectionString: stage.db.urls.worker });
  await worker.connect();
  const logins = await loader.value(`select oid from pg_class where relname = 'user_logins_default'`);
  const countOf = async (table: string) =>
    Number(await loader.value('select pg_stat_get_tuples_inserted($1)', [table]));
  const [before, maskedBefore] = [await countOf(vault), await countOf(logins)];
  const batchId = await stageBatch(stage.db, [message(event({ ip, device_id: null }))]);
  await worker.query('select masking.mask_batch($1)', [batchId]);
  await worker.query('select pg_stat_force_next_flush()');
  await worker.end();
  await until(async () => (await countOf(logins)) > maskedBefore);
  return (await countOf(vault)) - before;
}

describe('before hardening', () => {
  test('a loader can see from counters whether a value that it sends is known', async () => {
    expect(await rowsSeen(people[0]!.ip)).toBe(0);
    expect(await rowsSeen('203.0.113.200')).toBe(1);
    for (const statement of COUNTERS) {
      expect({ statement, state: await loader.state(counter(statement)) }).toEqual({
        statement,
        state: 'none',
      });
    }
  });

  test('a migrating login that is not a superuser cannot revoke access to the counters', async () => {
    const owner = await stage.superuser();
    await owner.run('set role local_owner');
    await owner.run('revoke execute on function pg_catalog.pg_stat_get_tuples_inserted(oid) from public');
    expect(await loader.state(counter('select pg_stat_get_tuples_inserted($vault)'))).toBe('none');
  });
});

describe('after hardening', () => {
  beforeAll(async () => {
    await (await stage.superuser()).run(HIDE_COUNTERS);
  });

  test.each(COUNTERS)('a loader is refused: %s', async (statement) => {
    expect(await loader.state(counter(statement))).toBe('42501');
  });

  test('a monitoring login can still read the counters', async () => {
    const monitor = await stage.join('monitor', 'pg_monitor');
    for (const statement of COUNTERS) {
      expect({ statement, state: await monitor.state(counter(statement)) }).toEqual({
        statement,
        state: 'none',
      });
    }
  });

  test('a loader cannot read pg_stat_statements', async () => {
    const superuser = await stage.superuser();
    await superuser.run('create extension if not exists pg_stat_statements schema public');
    await superuser.run(HIDE_COUNTERS);
    expect(await loader.state('select wal_bytes from public.pg_stat_statements')).toBe('42501');
  });

  test('loading, masking, emptying staging, revealing, verifying and status still work', async () => {
    const batchId = await stageBatch(stage.db, [message(event({ ip: '203.0.113.201' }))]);
    expect(await mask(stage.db, batchId)).toHaveLength(1);
    const worker = stage.db.pool('worker');
    await worker.query('select staging.close_batch($1)', [batchId]);
    await worker.query('select staging.recycle_slots()');
    await worker.query('select staging.maintain_partitions()');
    await worker.query('select * from staging.status()');
    const unmasker = await stage.join('unmasker', 'logins_unmasker');
    const id = await request(unmasker, 'ip', [people[0]!.ipToken]);
    expect(await revealed(unmasker, id)).toEqual({ [people[0]!.ipToken]: people[0]!.ip });
    const { rows } = await stage.db.pool('auditor').query('select intact from audit.verify()');
    expect(rows).toEqual([{ intact: true }]);
  });
});

test('the query for logins that bypass all grants returns exactly those logins', async () => {
  const superuser = await stage.superuser();
  const plain = await stage.join('plain', 'pg_read_all_data', 'pg_write_all_data', 'logins_unmasker');
  const files = await stage.join('files', 'pg_read_server_files');
  const passing = await stage.join('passing', 'pg_read_all_data');
  await superuser.run(`alter role ${passing.login} bypassrls`);
  const { state, rows } = await superuser.run(LIST_BYPASSING);
  expect(state).toBe('none');
  const names = rows.map((row) => row['rolname']);
  expect(names).toEqual(expect.arrayContaining(['postgres', 'local_owner', files.login, passing.login]));
  expect(names).not.toContain(plain.login);
  expect(names.filter((name) => String(name).startsWith('local_'))).toEqual(['local_owner']);
  // A listed login can read the key-encryption key, and a login that is not listed cannot.
  expect(await passing.value('select octet_length(kek) from masking.kek')).toBe(32);
  expect(await plain.value('select count(*) from masking.kek')).toBe('0');
});
