/** The requester is the login (session_user), whatever role it has set. */
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { guard, loadPeople, request, REVEAL, setPolicy, setStage } from '../support/unmask.ts';
import type { Person, Session, Stage } from '../support/unmask.ts';

const APPROVE = 'select unmask.approve($1)';

let stage: Stage;
let person: Person;
let victim: Session;
const attackers: Session[] = [];
beforeAll(async () => {
  stage = await setStage();
  const people = await loadPeople(stage.db, 1);
  person = people[0]!;
  await guard(stage, people);
  victim = await stage.join('victim', 'logins_unmasker');
});
afterEach(async () => {
  for (const each of attackers) await each.run('rollback; reset session authorization; reset role');
  stage.refuteLeaks(victim, ...attackers);
});
afterAll(() => stage.drop());

async function attacker(name: string, ...roles: string[]): Promise<Session> {
  const session = await stage.join(name, ...roles);
  attackers.push(session);
  return session;
}

/** A request that needs approval. */
async function largeRequest(session: Session): Promise<string> {
  await setPolicy(stage.db, 'logins_unmasker', { approvalAbove: 0 });
  try {
    return await request(session, 'ip', [person.ipToken]);
  } finally {
    await setPolicy(stage.db, 'logins_unmasker');
  }
}

test("a member of the requester's role cannot reveal as the requester", async () => {
  const id = await request(victim, 'ip', [person.ipToken]);
  const member = await attacker('member', victim.login, 'logins_unmasker');
  for (const role of ['none', victim.login, 'logins_unmasker', 'logins_analyst']) {
    expect(await member.state(`set role ${role}`)).toBe('none');
    const state = await member.state(REVEAL, [id]);
    expect({ role, state }).toEqual({ role, state: role === 'logins_analyst' ? '42501' : 'ML102' });
  }
  const { rows } = await member.run('reset role; select from unmask.pending_requests');
  expect(rows).toEqual([]);
});

test('a request that is made under another role belongs to the login and names it', async () => {
  const member = await attacker('member_2', victim.login);
  await member.run(`set role ${victim.login}`);
  const id = await request(member, 'ip', [person.ipToken]);
  expect(await victim.state(REVEAL, [id])).toBe('ML102');
  const { rows } = await stage.db.superuser.query(
    `select r.requested_by, e.actor from unmask.requests r join audit.events e using (event_id) where request_id = $1`,
    [id],
  );
  expect(rows).toEqual([{ requested_by: member.login, actor: member.login }]);
});

test('only a superuser can become another login', async () => {
  const id = await request(victim, 'ip', [person.ipToken]);
  const member = await attacker('member_3', victim.login);
  for (const who of [victim.login, 'logins_unmasker', 'logins_owner', 'postgres']) {
    expect(await member.state(`set session authorization ${who}`)).toBe('42501');
  }
  await member.run(`set role ${victim.login}`);
  expect(await member.state(`set session authorization ${victim.login}`)).toBe('42501');
  expect(await member.state('set role logins_owner')).toBe('42501');
  expect(await member.state(REVEAL, [id])).toBe('ML102');
});

test('a requester can reveal under any role that may call reveal', async () => {
  const honest = await stage.join('honest', 'logins_unmasker');
  const id = await request(honest, 'ip', [person.ipToken]);
  await honest.run('set role logins_unmasker');
  expect((await honest.run(REVEAL, [id])).rows).toEqual([{ token: person.ipToken, value: person.ip }]);
});

test('nobody can approve their own request', async () => {
  const both = await attacker('both', 'logins_unmasker', 'logins_approver');
  const id = await largeRequest(both);
  expect(await both.state(APPROVE, [id])).toBe('ML109');
  for (const role of ['logins_approver', 'logins_unmasker']) {
    await both.run(`set role ${role}`);
    expect(await both.state(APPROVE, [id])).toBe(role === 'logins_approver' ? 'ML109' : '42501');
  }
  await both.run('reset role');
  expect(await both.state(REVEAL, [id])).toBe('ML105');
});

test('nobody can approve a request of a login that they are a member of, even indirectly', async () => {
  const id = await largeRequest(victim);
  const direct = await attacker('direct', 'logins_approver', victim.login);
  expect(await direct.state(APPROVE, [id])).toBe('ML109');

  const group = `${victim.login}_group`;
  await stage.db.superuser.query(`create role ${group} in role ${victim.login}`);
  try {
    const indirect = await attacker('indirect', 'logins_approver', group);
    expect(await indirect.state(APPROVE, [id])).toBe('ML109');
  } finally {
    await stage.db.superuser.query(`drop role ${group}`);
  }

  const bare = await attacker('bare', 'logins_approver');
  await stage.db.superuser.query(
    `grant ${victim.login} to ${bare.login} with inherit false, set false, admin true`,
  );
  expect(await bare.state(APPROVE, [id])).toBe('ML109');
});

test('nobody can approve a request of a login that is a member of theirs', async () => {
  const alter = await attacker('alter', 'logins_approver');
  const requester = await attacker('requester', 'logins_unmasker', alter.login);
  const id = await largeRequest(requester);
  expect(await alter.state(APPROVE, [id])).toBe('ML109');
  await requester.run(`set role ${alter.login}`);
  expect(await requester.state(APPROVE, [id])).toBe('ML109');
  await requester.run('reset role');
  expect(await requester.state(REVEAL, [id])).toBe('ML105');
});

test('an approver who is not an unmasker cannot see the values that they approve', async () => {
  const approver = await attacker('approver', 'logins_approver');
  const id = await largeRequest(victim);
  expect(await approver.state(APPROVE, [id])).toBe('none');
  expect(await approver.state(REVEAL, [id])).toBe('42501');
  const second = await attacker('approver_2', 'logins_approver', 'logins_unmasker');
  const other = await largeRequest(victim);
  expect(await second.state(APPROVE, [other])).toBe('none');
  expect(await second.state(REVEAL, [other])).toBe('ML102');
});

test.each(['analyst', 'approver', 'custodian', 'auditor', 'worker', 'loader'])(
  'a member of logins_%s cannot request, search or reveal',
  async (role) => {
    const id = await request(victim, 'ip', [person.ipToken]);
    const session = await attacker(`plain_${role}`, `logins_${role}`);
    const states = [
      await session.state(REVEAL, [id]),
      await session.state(`select unmask.request('ip', $1, 'INC-1')`, [[person.ipToken]]),
      await session.state(`select unmask.request_user($1, 'INC-1')`, [person.user]),
      await session.state(`select unmask.request_quarantined($1, 'INC-1')`, [[person.ipToken]]),
      await session.state(`select unmask.request_find('ip', '203.0.113.1', 'INC-1')`),
      await session.state(`select unmask.find('ip', '203.0.113.1')`),
      await session.state(`select unmask.granted($1)`, [id]),
      await session.state(`select * from masking.decrypt_values($1)`, [[person.ipToken]]),
    ];
    expect(states).toEqual(Array(8).fill('42501'));
  },
);

test('an unmasker cannot call the internal functions of reveal', async () => {
  const id = await request(victim, 'ip', [person.ipToken]);
  const states = [
    await victim.state('select * from unmask.granted($1)', [id]),
    await victim.state('select * from masking.decrypt_values($1)', [[person.ipToken]]),
    await victim.state('select * from masking.decrypt_bodies($1)', [[person.ipToken]]),
    await victim.state(`select * from masking.tokens_of_value('ip', '203.0.113.1')`),
    await victim.state(`select unmask.create_request('ip', $1, 'INC-1', null)`, [[person.ipToken]]),
    await victim.state(`select audit.append('reveal', '{}')`),
    await victim.state(`select unmask.approve($1)`, [id]),
  ];
  expect(states).toEqual(Array(7).fill('42501'));
});

test('a login with pg_read_all_data sees no value, key or ciphertext in any table or view', async () => {
  const reader = await attacker('reader', 'pg_read_all_data');
  await reader.run('set row_security = on');
  const { rows: relations } = await reader.run(
    `select c.oid::regclass::text as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where c.relkind in ('r', 'v', 'p', 'S') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'`,
  );
  expect(relations.length).toBeGreaterThan(25);
  for (const { name } of relations) expect(await reader.state(`select * from ${String(name)}`)).toBe('none');
  const superuser = await stage.superuser();
  const ciphertext = await superuser.value<Buffer>('select ciphertext from masking.vault where token = $1', [
    person.ipToken,
  ]);
  // It does see masked logins. If it saw nothing, the test would prove nothing.
  expect(reader.printed().toString()).toContain(person.user);
  expect(reader.printed().toString()).not.toContain(ciphertext.toString('hex'));
});
