/** Records that a superuser has changed, and privileges on records that nobody else has. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { StackLogin } from '../../local/stack/logins.ts';
import { sqlstate } from '../support/sqlstate.ts';
import { guard, loadPeople, request, REVEAL, setPolicy, setStage } from '../support/unmask.ts';
import type { Person, Session, Stage } from '../support/unmask.ts';

const APPROVE = 'select unmask.approve($1)';
const LOGINS = ['loader', 'worker', 'analyst', 'unmasker', 'approver', 'custodian', 'auditor'] as const;
const RECORDS = ['audit.events', 'unmask.requests', 'unmask.approvals'];

let stage: Stage;
let people: Person[];
let unmasker: Session;
let approver: Session;
let id: string;
beforeAll(async () => {
  stage = await setStage();
  people = await loadPeople(stage.db, 2);
  await guard(stage, people);
  unmasker = await stage.join('unmasker', 'logins_unmasker');
  approver = await stage.join('approver', 'logins_approver');
  await setPolicy(stage.db, 'logins_unmasker', { approvalAbove: 0 });
});
beforeEach(async () => {
  id = await request(unmasker, 'ip', [people[0]!.ipToken]);
});
afterEach(() => stage.refuteLeaks(unmasker, approver));
afterAll(() => stage.drop());

/** Inserts a forged approval of the request. */
const forgeApproval = (who: string, digest: string) =>
  forge(
    `insert into unmask.approvals (request_id, approved_by, digest, event_id)
     select r.request_id, ${who}, ${digest}, r.event_id from unmask.requests r where r.request_id = $1`,
    [id],
  );

/** Changes a record as a superuser who has disabled the triggers. */
async function forge(statement: string, values: unknown[] = []): Promise<void> {
  const client = await stage.db.superuser.connect();
  try {
    await client.query('begin; set local session_replication_role = replica');
    expect((await client.query(statement, values)).rowCount).toBeGreaterThan(0);
    await client.query('commit');
  } finally {
    client.release(true);
  }
}

const CHANGES: [string, string][] = [
  ['tokens', `tokens = tokens || '{TOKEN}'::uuid[]`],
  ['kind', `kind = 'device_id'`],
  ['reason', `reason = 'another'`],
  ['subject', `subject = 'somebody'`],
  ['requested_by', `requested_by = 'somebody'`],
  ['role_name', `role_name = 'somebody'`],
  ['requested_at', `requested_at = requested_at - interval '1 microsecond'`],
  ['expires_at', `expires_at = expires_at + interval '1 day'`],
  ['needs_approval', 'needs_approval = not needs_approval'],
  ['xid', `xid = '1'`],
  ['event_id', 'event_id = event_id - 1'],
];

test.each(CHANGES)('a request whose %s was changed cannot be approved or revealed', async (_, change) => {
  const statement = `update unmask.requests set ${change.replace('TOKEN', people[1]!.ipToken)} where request_id = $1`;
  expect(await approver.state(APPROVE, [id])).toBe('none');
  await forge(statement, [id]);
  expect(await unmasker.state(REVEAL, [id])).toBe('ML108');
  const another = await request(unmasker, 'ip', [people[0]!.ipToken]);
  await forge(statement, [another]);
  expect(await approver.state(APPROVE, [another])).toBe('ML108');
});

test('a forged request cannot be revealed', async () => {
  await forge(
    `insert into unmask.requests
     select gen_random_uuid(), kind, array[$2]::uuid[], reason, subject, requested_by, role_name, requested_at, expires_at,
            false, xid, event_id
       from unmask.requests where request_id = $1`,
    [id, people[1]!.ipToken],
  );
  const forged = await (
    await stage.superuser()
  ).value('select request_id from unmask.requests where tokens[1] = $1', [people[1]!.ipToken]);
  expect(await unmasker.state(REVEAL, [forged])).toBe('ML108');
});

test('a request whose event was edited or removed cannot be revealed', async () => {
  await approver.run(APPROVE, [id]);
  for (const statement of [
    `update audit.events set actor = 'somebody' where details ->> 'request_id' = $1 and action = 'request'`,
    `delete from audit.events where details ->> 'request_id' = $1 and action = 'request'`,
  ]) {
    await forge(statement, [id]);
    expect(await unmasker.state(REVEAL, [id])).toBe('ML108');
  }
});

test('an approval of different content, of another request or by the requester does not count', async () => {
  for (const [who, digest] of [
    [`'somebody'`, `'\\x00'`],
    [
      `'somebody'`,
      `(select unmask.digest_of(o) from unmask.requests o where o.request_id <> r.request_id limit 1)`,
    ],
    ['r.requested_by', 'unmask.digest_of(r)'],
  ] as const) {
    await forgeApproval(who, digest);
    expect(await unmasker.state(REVEAL, [id])).toBe('ML105');
    await forge('delete from unmask.approvals where request_id = $1', [id]);
  }
});

/**
 * A valid event of an approval that is not linked into the audit log: no event names it, and it is not a
 * head.
 */
const approvalEvent = (n: string) => `
  create temp table forged on commit drop as
  select (e).* from (select row(${n}, clock_timestamp(), '${approver.login}', 'approve',
    jsonb_build_object('request_id', '${id}', 'requested_by', '${unmasker.login}'),
    (select previous_hashes from audit.events order by event_id desc limit 1), '')::audit.events as e) f;
  update forged f set hash = audit.hash_of(row(f.*)::audit.events);
  insert into audit.events select * from forged;
  insert into unmask.approvals (request_id, approved_by, digest, event_id)
  select r.request_id, '${approver.login}', unmask.digest_of(r), ${n} from unmask.requests r where r.request_id = '${id}'`;

test('an approval does not count if its event is valid but not linked into the audit log', async () => {
  const forger = await stage.superuser();
  await forger.run('begin');
  expect(await forger.state(approvalEvent('1000000'))).toBe('none');
  expect(await forger.state('commit')).toBe('none');
  expect(await unmasker.state(`select count(*) from unmask.reveal('${id}')`)).toBe('ML105');
  // As a head, the same event is valid: only the link was missing.
  await forge(
    `insert into audit.heads select event_id, hash from audit.events where event_id = $1`,
    [1000000],
  );
  await unmasker.run('begin');
  expect(await unmasker.state(`select count(*) from unmask.reveal('${id}')`)).toBe('none');
  await unmasker.run('rollback');
  await forge('delete from audit.heads where event_id = $1', [1000000]);
  await forge('delete from unmask.approvals where event_id = $1', [1000000]);
  await forge('delete from audit.events where event_id = $1', [1000000]);
});

test('a request whose event is no longer linked into the audit log cannot be revealed', async () => {
  await approver.run(APPROVE, [id]);
  await forge(
    `update audit.events set previous_hashes = array[sha256('x')] where event_id = (
    select min(l.event_id) from audit.events l, audit.events e
     where e.hash = any (l.previous_hashes) and e.details ->> 'request_id' = $1 and e.action = 'request')`,
    [id],
  );
  expect(await unmasker.state(REVEAL, [id])).toBe('ML108');
});

test('an approval without an event does not count', async () => {
  await forgeApproval(`'somebody'`, 'unmask.digest_of(r)');
  expect(await unmasker.state(`select count(*) from unmask.reveal('${id}')`)).toBe('ML105');
});

/** A column of each table to write to. */
const COLUMNS: Record<string, string> = {
  'audit.events': 'hash',
  'audit.heads': 'hash',
  'unmask.requests': 'request_id',
  'unmask.approvals': 'request_id',
  'unmask.policy': 'values_per_day',
};

const writes = (table: string) => [
  `insert into ${table} select * from ${table} limit 0`,
  `insert into ${table} default values`,
  `update ${table} set ${COLUMNS[table]} = null`,
  `delete from ${table}`,
  `truncate ${table} cascade`,
  `merge into ${table} t using (select 1) s on false when not matched then insert default values`,
  `copy ${table} from stdin`,
  `alter table ${table} disable trigger all`,
  `drop table ${table}`,
  `create trigger mine before insert on ${table} for each row execute function suppress_redundant_updates_trigger()`,
  `do $$ begin lock table ${table} in access exclusive mode; end $$`,
  `select from ${table} for update`,
];

describe('records cannot be changed', () => {
  test.each(LOGINS)('by a member of logins_%s', async (login: StackLogin) => {
    const pool = stage.db.pool(login);
    for (const table of [...RECORDS, 'audit.heads', 'unmask.policy']) {
      for (const statement of writes(table)) {
        expect({ statement, state: await sqlstate(pool.query(statement)) }).toEqual({
          statement,
          state: '42501',
        });
      }
    }
    expect(await sqlstate(pool.query('set session_replication_role = replica'))).toBe('42501');
  });

  test('by their owner', async () => {
    const owner = await stage.superuser();
    await owner.run('set role logins_owner');
    for (const table of RECORDS) {
      for (const statement of [
        `update ${table} set ${COLUMNS[table]} = ${COLUMNS[table]}`,
        `delete from ${table}`,
        `truncate ${table} cascade`,
        `merge into ${table} t using (select 1) s on true when matched then delete`,
      ]) {
        await approver.run(APPROVE, [id]);
        expect({ statement, state: await owner.state(statement) }).toEqual({ statement, state: 'ML201' });
      }
    }
    expect(await owner.state('set session_replication_role = replica')).toBe('42501');
  });
});
