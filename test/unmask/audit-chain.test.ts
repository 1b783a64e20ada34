import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { rewrap, unseal } from '../../src/database/kek.ts';
import { randomBytes } from 'node:crypto';
import { guard, loadPeople, quarantine, request, REVEAL, setPolicy, setStage } from '../support/unmask.ts';
import { findLeaks } from '../support/leak-scan.ts';
import { sqlstate } from '../support/sqlstate.ts';
import type { Person, Session, Stage } from '../support/unmask.ts';

const WRITERS = 8;
const ROUNDS = 12;
const VERIFY =
  'select intact, events::int, head_event_id::int, head_hash, broken_event_id::int from audit.verify()';

let stage: Stage;
let people: Person[];
let auditor: Session;
beforeAll(async () => {
  stage = await setStage();
  people = await loadPeople(stage.db, WRITERS);
  await guard(stage, people);
  auditor = await stage.join('auditor', 'logins_auditor');
});
afterAll(() => stage.drop());

async function verify(): Promise<Record<string, unknown>> {
  const { state, rows } = await auditor.run(VERIFY);
  expect(state).toBe('none');
  return rows[0]!;
}

/** Requests, gets approval and reveals, again and again. Rolls back every third reveal. */
async function work(unmasker: Session, approver: Session, person: Person): Promise<void> {
  for (let n = 0; n < ROUNDS; n += 1) {
    const id = await request(unmasker, 'ip', [person.ipToken]);
    expect(await unmasker.state(REVEAL, [id])).toBe('ML105');
    expect(await approver.state('select unmask.approve($1)', [id])).toBe('none');
    await unmasker.run('begin');
    expect(await unmasker.state(REVEAL, [id])).toBe('none');
    await unmasker.run(n % 3 === 0 ? 'rollback' : 'commit');
  }
}

async function changeKeks(): Promise<void> {
  const custodian = stage.db.pool('custodian');
  for (let n = 0; n < 3; n += 1) {
    stage.secrets[`kek ${n}`] = randomBytes(32);
    await rewrap(custodian, stage.secrets[`kek ${n}`] as Buffer);
    await custodian.query('select masking.pause_rotation()');
  }
}

/** Verifies the audit log until the signal aborts. Returns how often. */
async function watch(signal: AbortSignal): Promise<number> {
  let checks = 0;
  for (; !signal.aborted; checks += 1) expect(await verify()).toMatchObject({ intact: true });
  return checks;
}

test('eight concurrent writers leave the audit log intact, and the next event joins all heads', async () => {
  await setPolicy(stage.db, 'logins_unmasker', { approvalAbove: 0 });
  const pairs = await Promise.all(
    people.map(async (person, n) => ({
      person,
      unmasker: await stage.join(`unmasker_${n}`, 'logins_unmasker'),
      approver: await stage.join(`approver_${n}`, 'logins_approver'),
    })),
  );
  const working = new AbortController();
  const watching = watch(working.signal);
  await Promise.all([
    changeKeks(),
    ...pairs.map(({ unmasker, approver, person }) => work(unmasker, approver, person)),
  ]);
  working.abort();
  expect(await watching).toBeGreaterThan(1);

  const verdict = await verify();
  const count = WRITERS * (ROUNDS + ROUNDS + ROUNDS - ROUNDS / 3);
  expect(verdict).toMatchObject({ intact: true });
  expect(verdict['events']).toBeGreaterThanOrEqual(count + 6);
  await appendEvent();
  const { rows } = await stage.db.superuser.query(
    `select count(*)::int as heads,
            (select count(*)::int from audit.events e
              where exists (select from audit.events p where p.hash = any (e.previous_hashes) and p.at > e.at)) as time_goes_back
       from audit.heads`,
  );
  expect(rows).toEqual([{ heads: 1, time_goes_back: 0 }]);
});

const appendEvent = () => stage.db.pool('custodian').query('select masking.pause_rotation()');

test('each request, approval and reveal is one event of its login, in this order', async () => {
  const { rows } = await stage.db.superuser.query<{ order: string }>(
    `select string_agg(e.action || ' ' || (e.actor = case e.action when 'approve' then a.approved_by else r.requested_by end), ', '
              order by e.event_id) as order
       from unmask.requests r join unmask.approvals a using (request_id)
       join audit.events e on e.details ->> 'request_id' = r.request_id::text
      group by r.request_id`,
  );
  expect(rows).toHaveLength(WRITERS * ROUNDS);
  const orders = new Set(rows.map(({ order }) => order));
  expect(orders).toEqual(new Set(['request true, approve true, reveal true', 'request true, approve true']));
});

/** Ways to leave a transaction open that has appended an event. Each returns a function that ends it. */
const HOLDERS: [string, (holder: Session) => Promise<() => Promise<unknown>>][] = [
  ['an open request', async (holder) => () => holder.run('rollback')],
  [
    'a prepared transaction',
    async (holder) => {
      const name = `${holder.login}_prepared`;
      expect(await holder.state(`prepare transaction '${name}'`)).toBe('none');
      return () => holder.run(`rollback prepared '${name}'`);
    },
  ],
];

describe.each(HOLDERS)('%s does not block', (name, hold) => {
  let release: () => Promise<unknown>;
  beforeAll(async () => {
    const holder = await stage.join(`holder_${name.length}`, 'logins_unmasker');
    await holder.run('begin');
    await request(holder, 'ip', [people[0]!.ipToken]);
    release = await hold(holder);
  });
  afterAll(() => release());

  test('requests, approvals and reveals of others', async () => {
    const unmasker = await stage.join(`free_${name.length}`, 'logins_unmasker');
    const approver = await stage.join(`approves_${name.length}`, 'logins_approver');
    for (const session of [unmasker, approver]) await session.run(`set lock_timeout = '1ms'`);
    const id = await request(unmasker, 'ip', [people[1]!.ipToken]);
    expect(await approver.state('select unmask.approve($1)', [id])).toBe('none');
    expect(await unmasker.state(REVEAL, [id])).toBe('none');
  });

  test.each([
    'select masking.seal()',
    `select masking.rotate('cipher', 'device_id')`,
    'select masking.set_retention(12)',
    `select masking.erase_user('nobody', 'Art. 17')`,
  ])('%s', async (statement) => {
    const client = await stage.db.pool('custodian').connect();
    await client.query(`begin; set local lock_timeout = '1ms'`);
    expect(await sqlstate(client.query(statement))).toBe('none');
    await client.query('rollback');
    client.release();
    await unseal(stage.db.pool('worker'), stage.secrets['kek 2'] as Buffer);
  });
});

test('after these transactions the next event leaves the audit log intact', async () => {
  await appendEvent();
  expect(await verify()).toMatchObject({ intact: true });
});

test('an event that joins many heads uses only one sub-transaction', async () => {
  await stage.db.superuser.query(
    `insert into audit.heads (event_id, hash) select -n, sha256(n::text::bytea) from generate_series(1, 500) n`,
  );
  const writer = await stage.db.superuser.connect();
  await writer.query('begin');
  await writer.query(`select audit.append('test', '{}')`);
  const { rows } = await writer.query(
    `select s.subxact_count, s.subxact_overflowed, (select count(*)::int from audit.heads) as heads
       from pg_stat_get_backend_idset() b, pg_stat_get_backend_subxact(b) s
      where pg_stat_get_backend_pid(b) = pg_backend_pid()`,
  );
  await writer.query('rollback');
  writer.release();
  await stage.db.superuser.query('delete from audit.heads where event_id < 0');
  expect(rows).toEqual([{ subxact_count: 1, subxact_overflowed: false, heads: 1 }]);
});

test.each(['repeatable read', 'serializable'])(
  'a writer in %s can append even if its snapshot lacks the latest event',
  async (isolation) => {
    const [slow, fast] = await Promise.all([
      stage.join(`slow_${isolation.length}`, 'logins_unmasker'),
      stage.join(`fast_${isolation.length}`, 'logins_unmasker'),
    ]);
    await slow.run(`begin isolation level ${isolation}; select 1 from unmask.policy`);
    await request(fast, 'ip', [people[0]!.ipToken]);
    expect(await slow.state(`select unmask.request('ip', $1, 'INC-1')`, [[people[1]!.ipToken]])).toBe('none');
    expect(await slow.state('commit')).toBe('none');
    expect(await verify()).toMatchObject({ intact: true });
  },
);

test('the actions of custodians are in the audit log', async () => {
  const custodian = stage.db.pool('custodian');
  const { rows: last } = await stage.db.superuser.query<{ id: string }>(
    'select max(event_id) as id from audit.events',
  );
  await custodian.query('select masking.seal()');
  await unseal(custodian, stage.secrets['kek 2'] as Buffer);
  await custodian.query(`select masking.rotate('cipher', 'ip')`);
  await custodian.query('select masking.pause_rotation()');
  await custodian.query('select masking.resume_rotation()');
  await custodian.query('select masking.set_retention(12)');
  await custodian.query('select staging.replay($1)', [await quarantine(stage.db, ['no JSON'])]);
  await custodian.query(`select masking.erase_user($1, 'Art. 17')`, [people[0]!.user]);
  const { rows } = await auditor.run(
    'select action, actor from audit.events where event_id > $1 order by event_id',
    [last[0]!.id],
  );
  expect(rows.map(({ action }) => action)).toEqual([
    'seal',
    'unseal',
    'rotate',
    'pause rotation',
    'resume rotation',
    'set retention',
    'replay',
    'erase user',
  ]);
  expect(new Set(rows.map(({ actor }) => actor))).toEqual(new Set(['local_custodian']));
  expect(await verify()).toMatchObject({ intact: true });
});

test('only auditors can read and verify the audit log', async () => {
  expect(await auditor.state('select * from audit.events')).toBe('none');
  expect(await auditor.state('select * from unmask.requests, unmask.approvals')).toBe('none');
  for (const login of ['loader', 'worker', 'analyst', 'unmasker', 'approver', 'custodian'] as const) {
    for (const statement of [
      'select from audit.events',
      'select * from audit.verify()',
      'select from audit.heads',
      'select from unmask.requests',
      'select from unmask.approvals',
    ]) {
      expect(await sqlstate(stage.db.pool(login).query(statement))).toBe('42501');
    }
  }
});

test('no value and no key is stored or shown in the clear', async () => {
  await stage.db.superuser.query('create extension if not exists pg_stat_statements schema public');
  expect(await findLeaks(stage.db.superuser, stage.secrets)).toEqual([]);
  stage.refuteLeaks(auditor);
});
