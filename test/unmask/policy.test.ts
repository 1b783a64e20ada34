import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { loadPeople, request, REVEAL, setPolicy, setStage } from '../support/unmask.ts';
import type { Session, Stage } from '../support/unmask.ts';

const REQUEST = `select unmask.request('ip', $1, 'INC-1')`;
const APPROVE = 'select unmask.approve($1)';

let stage: Stage;
let tokens: string[];
let unmasker: Session;
let colleague: Session;
let approver: Session;
beforeAll(async () => {
  stage = await setStage();
  tokens = (await loadPeople(stage.db, 10)).map(({ ipToken }) => ipToken);
  unmasker = await stage.join('unmasker', 'logins_unmasker');
  colleague = await stage.join('colleague', 'logins_unmasker');
  approver = await stage.join('approver', 'logins_approver');
});
beforeEach(async () => {
  for (const session of [unmasker, colleague]) await session.run('rollback; reset all');
  await clearRequests();
  await setPolicy(stage.db, 'logins_unmasker');
});
afterAll(() => stage.drop());

/** Deletes all requests, so that none counts towards the daily limit. */
async function clearRequests(): Promise<void> {
  await stage.db.superuser.query(`begin; set local session_replication_role = replica;
    delete from unmask.approvals; delete from unmask.requests; commit`);
}

test('a request may have as many values as the policy allows, and one more is refused (ML106)', async () => {
  await setPolicy(stage.db, 'logins_unmasker', { perRequest: 3 });
  expect(await unmasker.state(REQUEST, [tokens.slice(0, 3)])).toBe('none');
  const { state, hint } = await unmasker.run(REQUEST, [tokens.slice(0, 4)]);
  expect({ state, hint: typeof hint }).toEqual({ state: 'ML106', hint: 'string' });
});

test('a value that is requested twice counts once', async () => {
  await setPolicy(stage.db, 'logins_unmasker', { perRequest: 1 });
  expect(await unmasker.state(REQUEST, [[tokens[0], tokens[0], tokens[0]]])).toBe('none');
});

test('the daily limit is shared by all members of the role', async () => {
  await setPolicy(stage.db, 'logins_unmasker', { perDay: 5 });
  expect(await unmasker.state(REQUEST, [tokens.slice(0, 3)])).toBe('none');
  expect(await colleague.state(REQUEST, [tokens.slice(0, 3)])).toBe('ML106');
  expect(await colleague.state(REQUEST, [tokens.slice(0, 2)])).toBe('none');
  expect(await unmasker.state(REQUEST, [tokens.slice(0, 1)])).toBe('ML106');
});

describe('two concurrent requests that together exceed the daily limit', () => {
  let first: string;
  let second: string;
  beforeEach(async () => {
    await setPolicy(stage.db, 'logins_unmasker', { perDay: 5 });
    await unmasker.run('begin');
    first = await request(unmasker, 'ip', tokens.slice(0, 3));
    // A request that is not committed blocks nobody.
    await colleague.run(`set lock_timeout = '1ms'`);
    second = await request(colleague, 'ip', tokens.slice(3, 6));
  });

  test('the request that commits last is refused, and the other can be revealed again', async () => {
    expect((await colleague.run(REVEAL, [second])).rows).toHaveLength(3);
    await unmasker.run('commit');
    expect(await unmasker.run(REVEAL, [first])).toMatchObject({ state: 'ML106', rows: [] });
    expect((await colleague.run(REVEAL, [second])).rows).toHaveLength(3);
  });

  test('a reveal that is rolled back still counts, because it has shown its values', async () => {
    await colleague.run('begin');
    expect((await colleague.run(REVEAL, [second])).rows).toHaveLength(3);
    await unmasker.run('commit');
    expect(await unmasker.state(REVEAL, [first])).toBe('ML106');
    await colleague.run('rollback');
    expect(await unmasker.state(REVEAL, [first])).toBe('ML106');
  });

  test.each(['read committed', 'repeatable read'])(
    'both are refused if both commit before the first reveal (%s)',
    async (isolation) => {
      await unmasker.run('commit');
      for (const [session, id] of [
        [unmasker, first],
        [colleague, second],
      ] as const) {
        await session.run(`begin isolation level ${isolation}`);
        expect(await session.state(REVEAL, [id])).toBe('ML106');
        await session.run('rollback');
      }
    },
  );

  test('the second can be revealed if the first is rolled back', async () => {
    await unmasker.run('rollback');
    expect((await colleague.run(REVEAL, [second])).rows).toHaveLength(3);
    expect(await unmasker.state(REQUEST, [tokens.slice(0, 2)])).toBe('none');
  });
});

test('a find that exceeds the daily limit is refused', async () => {
  await setPolicy(stage.db, 'logins_unmasker', { perDay: 1 });
  await unmasker.run('begin');
  await unmasker.run(`select unmask.request_find('ip', '203.0.113.1', 'INC-1')`);
  await request(colleague, 'ip', tokens.slice(0, 1));
  await unmasker.run('commit');
  expect(await unmasker.state(`select * from unmask.find('ip', '203.0.113.1')`)).toBe('ML106');
});

test('a policy that is lowered or removed also applies to earlier requests', async () => {
  const id = await request(unmasker, 'ip', tokens.slice(0, 3));
  await setPolicy(stage.db, 'logins_unmasker', { perDay: 2 });
  expect(await unmasker.state(REVEAL, [id])).toBe('ML106');
  await stage.db.superuser.query('delete from unmask.policy');
  expect(await unmasker.state(REVEAL, [id])).toBe('ML106');
});

test('requests from yesterday do not count', async () => {
  await setPolicy(stage.db, 'logins_unmasker', { perDay: 3 });
  expect(await unmasker.state(REQUEST, [tokens.slice(0, 3)])).toBe('none');
  await stage.db.superuser.query(`begin; alter table unmask.requests disable trigger all;
    update unmask.requests set requested_at = date_trunc('day', now(), 'UTC') - interval '1 second';
    alter table unmask.requests enable trigger all; commit`);
  expect(await unmasker.state(REQUEST, [tokens.slice(0, 3)])).toBe('none');
});

test('every kind of request counts towards the daily limit', async () => {
  await setPolicy(stage.db, 'logins_unmasker', { perDay: 1 });
  expect(await unmasker.state(`select unmask.request_find('ip', '203.0.113.1', 'INC-1')`)).toBe('none');
  expect(await unmasker.state(REQUEST, [tokens.slice(0, 1)])).toBe('ML106');
});

test('a request that was rolled back does not count', async () => {
  await setPolicy(stage.db, 'logins_unmasker', { perDay: 3 });
  await unmasker.run('begin');
  expect(await unmasker.state(REQUEST, [tokens.slice(0, 3)])).toBe('none');
  await unmasker.run('rollback');
  expect(await unmasker.state(REQUEST, [tokens.slice(0, 3)])).toBe('none');
});

test('a role can have its own limits, and the most generous ones of a login apply', async () => {
  const group = `${unmasker.login}_group`;
  await stage.db.superuser.query(`create role ${group} in role logins_unmasker`);
  try {
    const member = await stage.join('member', group);
    await setPolicy(stage.db, 'logins_unmasker', { perRequest: 2, perDay: 2 });
    expect(await unmasker.state(REQUEST, [tokens.slice(0, 2)])).toBe('none');
    expect(await member.state(REQUEST, [tokens.slice(0, 1)])).toBe('ML106');

    await setPolicy(stage.db, group, { perRequest: 4, perDay: 4, approvalAbove: 3, lifetime: '1 hour' });
    expect(await member.state(REQUEST, [tokens.slice(0, 5)])).toBe('ML106');
    await request(member, 'ip', tokens.slice(0, 4));
    expect(await member.state(REQUEST, [tokens.slice(0, 1)])).toBe('ML106');
    expect(await unmasker.state(REQUEST, [tokens.slice(0, 1)])).toBe('ML106');
    const { rows } = await stage.db.superuser.query(
      `select needs_approval, expires_at - requested_at = '1 hour' as an_hour from unmask.requests where role_name = $1`,
      [group],
    );
    expect(rows).toEqual([{ needs_approval: true, an_hour: true }]);
  } finally {
    await stage.db.superuser.query(`delete from unmask.policy where role_name = '${group}'`);
    await stage.db.superuser.query(`drop role ${group}`);
  }
});

test('a login without a policy cannot request anything', async () => {
  await stage.db.superuser.query(`delete from unmask.policy`);
  expect(await unmasker.state(REQUEST, [tokens.slice(0, 1)])).toBe('ML106');
});

test('every change of the policy is in the audit log, with the old and the new limits', async () => {
  await setPolicy(stage.db, 'logins_unmasker', { perRequest: 7 });
  const { rows } = await stage.db.superuser.query(
    `select action, details #>> '{before,values_per_request}' as before, details #>> '{after,values_per_request}' as after
       from audit.events order by event_id desc limit 1`,
  );
  expect(rows).toEqual([{ action: 'policy update', before: '10000', after: '7' }]);
});

test('a request above the threshold needs approval, and approvers see it in pending_requests', async () => {
  await setPolicy(stage.db, 'logins_unmasker', { approvalAbove: 2 });
  const small = await request(unmasker, 'ip', tokens.slice(0, 2));
  expect(await unmasker.state(REVEAL, [small])).toBe('none');

  const notices = unmasker.notices.length;
  const large = await request(unmasker, 'ip', tokens.slice(0, 3));
  expect(unmasker.notices.length).toBe(notices + 1);
  const { state, hint } = await unmasker.run(REVEAL, [large]);
  expect({ state, hint: typeof hint }).toEqual({ state: 'ML105', hint: 'string' });

  const waiting = 'select request_id, value_count, requested_by from unmask.pending_requests';
  expect((await approver.run(waiting)).rows).toEqual([
    { request_id: large, value_count: 3, requested_by: unmasker.login },
  ]);
  expect(await approver.state(APPROVE, [large])).toBe('none');
  expect((await approver.run(waiting)).rows).toEqual([]);
  expect((await unmasker.run(REVEAL, [large])).rows).toHaveLength(3);
  expect(await approver.state(APPROVE, [large])).toBe('ML111');
});

test('an approver sees the user and the tokens of a request, but no values', async () => {
  await setPolicy(stage.db, 'logins_unmasker', { approvalAbove: 0 });
  const { rows: users } = await stage.db.superuser.query<{ user_id: string }>(
    'select user_id from public.user_logins where masked_ip = $1',
    [tokens[0]],
  );
  const user = users[0]!.user_id;
  const byTokens = await request(unmasker, 'ip', tokens.slice(0, 2));
  const byUser = await unmasker.value<string>(`select unmask.request_user($1, 'INC-2')`, [user]);
  const { rows } = await approver.run(
    'select request_id, kind, subject, value_count, tokens from unmask.pending_requests order by requested_at',
  );
  expect(rows).toEqual([
    {
      request_id: byTokens,
      kind: 'ip',
      subject: null,
      value_count: 2,
      tokens: tokens.slice(0, 2).toSorted(),
    },
    {
      request_id: byUser,
      kind: 'user',
      subject: user,
      value_count: 2,
      tokens: expect.arrayContaining([tokens[0]]),
    },
  ]);
});

test('of two concurrent approvals, one is refused', async () => {
  await setPolicy(stage.db, 'logins_unmasker', { approvalAbove: 0 });
  const id = await request(unmasker, 'ip', tokens.slice(0, 1));
  const second = await stage.join('approver_2', 'logins_approver');
  const states = await Promise.all([approver, second].map((each) => each.state(APPROVE, [id])));
  expect(states.sort()).toEqual(['ML111', 'none']);
});

test('an approval that is not committed does not count', async () => {
  await setPolicy(stage.db, 'logins_unmasker', { approvalAbove: 0 });
  const id = await request(unmasker, 'ip', tokens.slice(0, 1));
  await approver.run('begin');
  expect(await approver.state(APPROVE, [id])).toBe('none');
  expect(await unmasker.state(REVEAL, [id])).toBe('ML105');
  await approver.run('rollback');
  expect(await unmasker.state(REVEAL, [id])).toBe('ML105');
});

test('a request that does not exist or is not committed cannot be approved', async () => {
  await setPolicy(stage.db, 'logins_unmasker', { approvalAbove: 0 });
  expect(await approver.state('select unmask.approve(gen_random_uuid())')).toBe('ML101');
  await unmasker.run('begin');
  const id = await request(unmasker, 'ip', tokens.slice(0, 1));
  expect(await approver.state(APPROVE, [id])).toBe('ML101');
  await unmasker.run('rollback');
});
