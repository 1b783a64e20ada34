/** A reveal that fails or is interrupted shows nothing and leaves nothing behind. */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { guard, loadPeople, quarantine, request, setStage } from '../support/unmask.ts';
import { until } from '../support/pipeline.ts';
import type { Person, Session, Stage } from '../support/unmask.ts';

const MANY = 3000;

let stage: Stage;
let people: Person[];
let unmasker: Session;
let id: string;
let many: string;
beforeAll(async () => {
  stage = await setStage();
  people = await loadPeople(stage.db, 2);
  await guard(stage, people);
  unmasker = await stage.join('unmasker', 'logins_unmasker');
  id = await request(unmasker, 'ip', [people[0]!.ipToken]);
  await stage.db.superuser.query(`update unmask.policy set approval_above = 10000; analyze`);
  many = await request(
    unmasker,
    'ip',
    (await loadPeople(stage.db, MANY)).map(({ ipToken }) => ipToken),
  );
});
beforeEach(async () => {
  await unmasker.run('rollback; reset all');
});
afterEach(() => stage.refuteLeaks(unmasker));
afterAll(() => stage.drop());

const EVENTS = `select count(*)::int from audit.events where action = 'reveal'`;

test('an error that the caller causes contains no value in any of its fields', async () => {
  for (const expression of [
    '1 / (length(r.value) - length(r.value))',
    'r.token::text::int',
    '(r.token::text)::inet',
    `lpad('', 2000000000, 'x')`,
  ]) {
    const state = await unmasker.state(
      `select ${expression} from (select 1) one, lateral unmask.reveal('${id}') r`,
    );
    expect(state).not.toBe('none');
  }
});

test('a reveal that times out shows nothing and adds no event', async () => {
  const superuser = await stage.superuser();
  const before = await superuser.value<number>(EVENTS);
  await unmasker.run('set statement_timeout = 5');
  expect(await unmasker.state(`select count(*) from unmask.reveal('${many}')`)).toBe('57014');
  expect(await superuser.value<number>(EVENTS)).toBe(before);
});

/** Locks the keys, so that every session that decrypts values waits. */
async function lockKeys(): Promise<Session> {
  const holder = await stage.superuser();
  await holder.run('begin; lock table masking.keys in access exclusive mode');
  return holder;
}

test('a reveal that is cancelled while it waits shows nothing', async () => {
  const holder = await lockKeys();
  const pid = await unmasker.value<number>('select pg_backend_pid()');
  const cancelled = unmasker.run(`select * from unmask.reveal('${id}')`);
  await until(async () =>
    stage.db.superuser
      .query(`select from pg_stat_activity where pid = $1 and wait_event_type = 'Lock'`, [pid])
      .then(({ rowCount }) => rowCount === 1),
  );
  await stage.db.superuser.query('select pg_cancel_backend($1)', [pid]);
  expect(await cancelled).toMatchObject({ state: '57014', rows: [] });
  await unmasker.run('set lock_timeout = 10');
  expect(await unmasker.run(`select * from unmask.reveal('${id}')`)).toMatchObject({
    state: '55P03',
    rows: [],
  });
  await holder.run('rollback');
});

test('a reveal in REPEATABLE READ is recorded even if its snapshot lacks the latest event', async () => {
  await unmasker.run('begin isolation level repeatable read; select 1 from unmask.policy');
  await request(await stage.again(unmasker), 'ip', [people[1]!.ipToken]);
  expect(await unmasker.state(`select count(*) from unmask.reveal('${id}')`)).toBe('none');
  await unmasker.run('commit');
  const events = `select count(*)::int from audit.events where action = 'reveal' and details ->> 'request_id' = '${id}'`;
  expect(await (await stage.superuser()).value<number>(events)).toBeGreaterThan(0);
});

test('a session that is terminated during a reveal leaves the audit log intact', async () => {
  const terminated = await stage.again(unmasker);
  const pid = await terminated.value<number>('select pg_backend_pid()');
  const holder = await lockKeys();
  const ended = terminated
    .run(`select * from unmask.reveal('${id}')`)
    .catch(() => ({ state: 'gone', rows: [] }));
  await until(async () =>
    stage.db.superuser
      .query(`select from pg_stat_activity where pid = $1 and wait_event_type = 'Lock'`, [pid])
      .then(({ rowCount }) => rowCount === 1),
  );
  await stage.db.superuser.query('select pg_terminate_backend($1)', [pid]);
  expect((await ended).rows).toEqual([]);
  await holder.run('rollback');
  expect((await stage.db.superuser.query('select intact from audit.verify()')).rows).toEqual([
    { intact: true },
  ]);
  stage.refuteLeaks(terminated);
});

test('a reveal with a changed data key fails (ML002), and the error contains no key', async () => {
  const [body] = await quarantine(stage.db, ['no JSON']);
  const bodies = await unmasker.value(`select unmask.request_quarantined($1, 'INC-1')`, [[body]]);
  await stage.db.superuser.query(
    `update masking.keys set wrapped = set_byte(wrapped, 60, get_byte(wrapped, 60) # 1) where purpose = 'cipher'`,
  );
  expect(await unmasker.state(`select * from unmask.reveal('${id}')`)).toBe('ML002');
  expect(await unmasker.state(`select * from unmask.reveal('${String(bodies)}')`)).toBe('ML002');
});
