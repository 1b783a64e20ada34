/** A reveal waits until its record is durable, so that a crash cannot remove the record. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadPeople, request, REVEAL, setPolicy, setStage } from '../support/unmask.ts';
import type { Session, Stage } from '../support/unmask.ts';

/** The WAL writer may flush by chance and hide a reveal that does not wait. Many tries make that unlikely. */
const TRIES = 20;

let stage: Stage;
let token: string;
let unmasker: Session;
beforeAll(async () => {
  stage = await setStage();
  token = (await loadPeople(stage.db, 1))[0]!.ipToken;
  unmasker = await stage.join('unmasker', 'logins_unmasker');
  await unmasker.run('set synchronous_commit = off');
});
afterAll(() => stage.drop());

/** Commits and reveals. Returns whether the commit was on disk when the reveal answered. */
async function durableWhenShown(session: Session, id: string): Promise<boolean> {
  const { state, rows } = await session.run(
    `commit;
     select set_config('test.written', pg_current_wal_insert_lsn()::text, false);
     select count(*) from unmask.reveal('${id}');
     select pg_current_wal_flush_lsn() >= current_setting('test.written')::pg_lsn as durable`,
  );
  return state === 'none' && rows[0]!['durable'] === true;
}

test('with synchronous_commit = off, a reveal waits until its request is durable', async () => {
  for (let n = 0; n < TRIES; n += 1) {
    await unmasker.run('begin');
    const id = await request(unmasker, 'ip', [token]);
    expect(await durableWhenShown(unmasker, id)).toBe(true);
  }
});

test('a reveal waits until a request from a long transaction is durable', async () => {
  await unmasker.run('begin');
  const id = await request(unmasker, 'ip', [token]);
  await unmasker.run('select pg_sleep(1.1)');
  expect(await durableWhenShown(unmasker, id)).toBe(true);
});

test('a reveal waits until its approval is durable', async () => {
  await setPolicy(stage.db, 'logins_unmasker', { approvalAbove: 0 });
  const approver = await stage.join('approver', 'logins_approver');
  await approver.run('set synchronous_commit = off');
  const id = await request(unmasker, 'ip', [token]);
  await approver.run('begin');
  await approver.run('select unmask.approve($1)', [id]);
  await approver.run('select pg_sleep(1.1)');
  const written = await approver.value(`commit; select pg_current_wal_insert_lsn()::text`);
  expect((await unmasker.run(REVEAL, [id])).rows).toHaveLength(1);
  expect(await unmasker.value('select pg_current_wal_flush_lsn() >= $1::pg_lsn', [written])).toBe(true);
});

test.skipIf(process.env['TEST_POSTGRES'] !== '16')(
  'on Postgres 16, a reveal fails (58030) and shows nothing if the WAL writer does not flush',
  async () => {
    await setPolicy(stage.db, 'logins_unmasker');
    const superuser = await stage.superuser();
    const writer = await superuser.value<number>(
      `select pid from pg_stat_activity where backend_type = 'walwriter'`,
    );
    process.kill(writer, 'SIGSTOP');
    try {
      await unmasker.run('set synchronous_commit = off; begin');
      const id = await request(unmasker, 'ip', [token]);
      const { state, rows } = await unmasker.run(
        `commit; select set_config('test.written', pg_current_wal_insert_lsn()::text, false);
         select count(*) from unmask.reveal('${id}');
         select pg_current_wal_flush_lsn() >= current_setting('test.written')::pg_lsn as durable`,
      );
      // A commit in another test file may flush the WAL. Then the request is durable.
      expect({ state, durable: rows[0]?.['durable'] }).toEqual(
        state === 'none' ? { state: 'none', durable: true } : { state: '58030', durable: undefined },
      );
    } finally {
      process.kill(writer, 'SIGCONT');
    }
  },
);

/** Number of notices that a reveal sends with this synchronous_commit. */
const noticesWith = async (commit: string) => {
  await unmasker.run(`set synchronous_commit = ${commit}`);
  const id = await request(unmasker, 'ip', [token]);
  const before = unmasker.notices.length;
  expect(await unmasker.state(REVEAL, [id])).toBe('none');
  return unmasker.notices.length - before;
};

test('a reveal in a session that does not wait for synchronous standbys sends a notice', async () => {
  await setPolicy(stage.db, 'logins_unmasker');
  const superuser = await stage.superuser();
  // Makes this one function believe that the server has a synchronous standby.
  const definition = await superuser.value(`select pg_get_functiondef('audit.make_durable()'::regprocedure)`);
  expect(definition).toContain(`current_setting('synchronous_standby_names')`);
  await superuser.run(definition.replace(`current_setting('synchronous_standby_names')`, `'a standby'`));
  expect([
    await noticesWith('off'),
    await noticesWith('local'),
    await noticesWith('on'),
    await noticesWith('remote_apply'),
  ]).toEqual([1, 1, 0, 0]);
  await superuser.run(definition);
});

test('a reveal does not wait forever for WAL that is not flushed', async () => {
  await unmasker.run('set synchronous_commit = on');
  await setPolicy(stage.db, 'logins_unmasker');
  const idle = await stage.superuser();
  await idle.run('create table public.unrelated (n int)');
  // An open transaction has written WAL whose last page is not flushed for a while.
  await idle.run('begin');
  for (let n = 0; n < TRIES; n += 1) {
    const id = await request(unmasker, 'ip', [token]);
    await idle.run('insert into public.unrelated values (1)');
    await unmasker.run(`set statement_timeout = '10s'`);
    expect(await unmasker.state(REVEAL, [id])).toBe('none');
    await unmasker.run('reset statement_timeout');
  }
});
