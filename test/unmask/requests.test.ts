import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { maskAll, message } from '../support/staging.ts';
import { loadPeople, quarantine, request, revealed, REVEAL, setPolicy, setStage } from '../support/unmask.ts';
import type { Person, Session, Stage } from '../support/unmask.ts';

const REQUEST = 'select unmask.request($1, $2, $3)';

let stage: Stage;
let people: Person[];
let unmasker: Session;
let other: Session;
beforeAll(async () => {
  stage = await setStage();
  people = await loadPeople(stage.db, 12);
  unmasker = await stage.join('unmasker', 'logins_unmasker');
  other = await stage.join('other', 'logins_unmasker');
});
afterAll(() => stage.drop());

test('a committed request reveals its values and nothing else', async () => {
  const [first, second] = people;
  const ips = await request(unmasker, 'ip', [first!.ipToken, second!.ipToken, first!.ipToken]);
  expect(await revealed(unmasker, ips)).toEqual({
    [first!.ipToken]: first!.ip,
    [second!.ipToken]: second!.ip,
  });
  const devices = await request(unmasker, 'device_id', [first!.deviceToken]);
  expect(await revealed(unmasker, devices)).toEqual({ [first!.deviceToken]: first!.device });
});

test('revealed values can be joined with the logins that have them', async () => {
  const id = await request(unmasker, 'ip', [people[0]!.ipToken]);
  const { rows } = await unmasker.run(
    `select l.user_id, r.value from public.user_logins l join unmask.reveal($1) r on r.token = l.masked_ip`,
    [id],
  );
  expect(rows).toEqual([{ user_id: people[0]!.user, value: people[0]!.ip }]);
});

test('a request for a user reveals every address and device of their logins', async () => {
  const person = people[2]!;
  await maskAll(stage.db, [
    message(JSON.stringify({ user_id: person.user, ip: '203.0.113.77', device_id: null })),
  ]);
  const id = await unmasker.value('select unmask.request_user($1, reason => $2)', [person.user, 'INC-2']);
  const values = Object.values(await revealed(unmasker, id));
  expect(values.sort()).toEqual([person.ip, person.device, '203.0.113.77'].sort());
});

test('a request stores its login, tokens, reason and expiry', async () => {
  const tokens = [people[0]!.ipToken, people[1]!.ipToken].sort();
  const id = await request(unmasker, 'ip', tokens, '  INC-3  ');
  const { rows } = await stage.db.superuser.query(
    `select kind, tokens, reason, subject, requested_by, role_name, needs_approval,
            expires_at - requested_at = interval '1 day' as a_day, clock_timestamp() - requested_at < '1 minute' as now
       from unmask.requests where request_id = $1`,
    [id],
  );
  expect(rows).toEqual([
    {
      kind: 'ip',
      tokens,
      reason: 'INC-3',
      subject: null,
      requested_by: unmasker.login,
      role_name: 'logins_unmasker',
      needs_approval: false,
      a_day: true,
      now: true,
    },
  ]);
});

test('a request that needs no approval is visible in pending_requests only to its login', async () => {
  const id = await request(unmasker, 'ip', [people[0]!.ipToken]);
  const listed = async (session: Session) =>
    (await session.run('select request_id, value_count from unmask.pending_requests')).rows.filter(
      (row) => row['request_id'] === id,
    );
  expect(await listed(unmasker)).toEqual([{ request_id: id, value_count: 1 }]);
  expect(await listed(other)).toEqual([]);
  expect(await listed(await stage.join('approver', 'logins_approver'))).toEqual([]);
});

test.each<[string, unknown[]]>([
  ['no reason', ['ip', 'TOKENS', null]],
  ['an empty reason', ['ip', 'TOKENS', '']],
  ['a blank reason', ['ip', 'TOKENS', '   ']],
  ['a reason that is too long', ['ip', 'TOKENS', 'x'.repeat(1001)]],
  ['no field', [null, 'TOKENS', 'INC']],
  ['an unknown field', ['user_id', 'TOKENS', 'INC']],
  ['tokens of another field', ['device_id', 'TOKENS', 'INC']],
  ['null instead of an array', ['ip', null, 'INC']],
  ['an empty array', ['ip', [], 'INC']],
  ['only a null', ['ip', [null], 'INC']],
  ['ids that are not tokens', ['ip', ['ffffffff-ffff-8fff-bfff-ffffffffffff'], 'INC']],
])('a request with %s is refused (ML110) and not stored', async (_, [field, tokens, reason]) => {
  const token = people[0]!.ipToken;
  const given =
    tokens === 'TOKENS' ? [token] : (tokens as unknown[] | null)?.map((t) => (t === 'TOKEN' ? token : t));
  const count = 'select count(*)::int from unmask.requests';
  const superuser = await stage.superuser();
  const before = await superuser.value<number>(count);
  expect(await unmasker.state(REQUEST, [field, given ?? null, reason])).toBe('ML110');
  expect(await superuser.value<number>(count)).toBe(before);
});

test('a null among the tokens is ignored', async () => {
  const user = randomUUID();
  await maskAll(stage.db, [
    message(JSON.stringify({ user_id: user, ip: '203.0.113.61' })),
    message(JSON.stringify({ user_id: user })),
  ]);
  const id = await unmasker.value(
    `select unmask.request('ip', array(select masked_ip from public.user_logins where user_id = $1), 'INC')`,
    [user],
  );
  expect(Object.values(await revealed(unmasker, id))).toEqual(['203.0.113.61']);
  expect(
    await unmasker.state(
      `select unmask.request('device_id', array(select masked_device_id from public.user_logins where user_id = $1), 'INC')`,
      [user],
    ),
  ).toBe('ML110');
});

test('a null among the ids of quarantined messages is ignored', async () => {
  const [sent] = await quarantine(stage.db, ['no JSON']);
  const id = await unmasker.value(`select unmask.request_quarantined($1, 'INC')`, [[null, sent]]);
  expect(await revealed(unmasker, id)).toEqual({ [sent!]: 'no JSON' });
  expect(await unmasker.state(`select unmask.request_quarantined($1, 'INC')`, [[null]])).toBe('ML110');
});

test('a request for five million values is refused within seconds', async () => {
  await unmasker.run(`set statement_timeout = '10s'`);
  const many = `array_fill($1::uuid, array[5000000])`;
  const states = [
    await unmasker.state(`select unmask.request('ip', ${many}, 'INC')`, [people[0]!.ipToken]),
    await unmasker.state(`select unmask.request_quarantined(${many}, 'INC')`, [people[0]!.ipToken]),
  ];
  await unmasker.run('reset statement_timeout');
  expect(states).toEqual(['ML106', 'ML106']);
});

test('a value that a request names a hundred thousand times counts once', async () => {
  const id = await unmasker.value<string>(
    `select unmask.request('ip', array_fill($1::uuid, array[100000]), 'INC')`,
    [people[0]!.ipToken],
  );
  expect(await revealed(unmasker, id)).toEqual({ [people[0]!.ipToken]: people[0]!.ip });
});

test('a request for a user with more than a hundred thousand logins is refused', async () => {
  await stage.db.superuser.query(
    `insert into public.user_logins (user_id, create_date, message_id)
     select 'robot', now(), gen_random_uuid() from generate_series(1, 100001)`,
  );
  expect(await unmasker.state(`select unmask.request_user('robot', 'INC')`)).toBe('ML106');
  await stage.db.superuser.query(`delete from public.user_logins where ctid = (
    select ctid from public.user_logins where user_id = 'robot' limit 1)`);
  expect(await unmasker.state(`select unmask.request_user('robot', 'INC')`)).toBe('ML110');
});

test('request_find accepts a value as long as an event can contain, and refuses a longer one', async () => {
  const find = `select unmask.request_find('device_id', $1, 'INC')`;
  expect(await unmasker.state(find, ['x'.repeat(256)])).toBe('none');
  expect(await unmasker.state(find, ['x'.repeat(257)])).toBe('ML110');
});

test('a reason of a thousand characters is accepted', async () => {
  expect(await unmasker.state(REQUEST, ['ip', [people[0]!.ipToken], 'x'.repeat(1000)])).toBe('none');
});

test('a request for a user without logins or without tokens is refused (ML110)', async () => {
  const bare = randomUUID();
  await maskAll(stage.db, [message(JSON.stringify({ user_id: bare }))]);
  for (const user of ['nobody', null, bare]) {
    expect(await unmasker.state('select unmask.request_user($1, $2)', [user, 'INC'])).toBe('ML110');
  }
});

test('a reveal of a request that does not exist is refused (ML101)', async () => {
  for (const id of [randomUUID(), null]) expect(await unmasker.state(REVEAL, [id])).toBe('ML101');
});

test('a reveal by another login is refused (ML102), and the request stays valid', async () => {
  const id = await request(unmasker, 'ip', [people[0]!.ipToken]);
  expect(await other.state(REVEAL, [id])).toBe('ML102');
  expect(await unmasker.state(REVEAL, [id])).toBe('none');
});

test('a request can be revealed again until it expires, and each reveal is in the audit log', async () => {
  const id = await request(unmasker, 'ip', [people[3]!.ipToken]);
  const first = await revealed(unmasker, id);
  expect(await revealed(unmasker, id)).toEqual(first);
  const { rows } = await stage.db.superuser.query(
    `select actor, details from audit.events where action = 'reveal' and details ->> 'request_id' = $1`,
    [id],
  );
  const record = { actor: unmasker.login, details: { request_id: id, values: 1 } };
  expect(rows).toEqual([record, record]);
});

test('an expired request is refused (ML104) and no longer pending', async () => {
  await setPolicy(stage.db, 'logins_unmasker', { lifetime: '1 microsecond', approvalAbove: 0 });
  try {
    const id = await request(unmasker, 'ip', [people[0]!.ipToken]);
    expect(await unmasker.state(REVEAL, [id])).toBe('ML104');
    const approver = await stage.join('late_approver', 'logins_approver');
    expect(await approver.state('select unmask.approve($1)', [id])).toBe('ML104');
    const { rows } = await unmasker.run('select from unmask.pending_requests where request_id = $1', [id]);
    expect(rows).toEqual([]);
  } finally {
    await setPolicy(stage.db, 'logins_unmasker');
  }
});

test('erased values are left out, and a request for nothing else is refused (ML107)', async () => {
  const [gone, kept, alone] = people.slice(5, 8).map(({ ipToken }) => ipToken) as [string, string, string];
  const both = await request(unmasker, 'ip', [gone, kept]);
  const one = await request(unmasker, 'ip', [gone]);
  await stage.db.superuser.query('delete from masking.vault where token = $1', [gone]);
  expect(await unmasker.state(REQUEST, ['ip', [gone], 'INC'])).toBe('ML107');
  expect(await unmasker.state(REVEAL, [one])).toBe('ML107');
  const before = unmasker.notices.length;
  expect(await revealed(unmasker, both)).toEqual({ [kept]: people[6]!.ip });
  expect(unmasker.notices.length).toBe(before + 1);
  expect(await unmasker.state(REQUEST, ['ip', [gone, alone], 'INC'])).toBe('none');
});

test('errors that a person can correct have a hint', async () => {
  const id = await request(other, 'ip', [people[0]!.ipToken]);
  await unmasker.run('begin');
  const uncommitted = await request(unmasker, 'ip', [people[0]!.ipToken]);
  const answers = [await unmasker.run(REVEAL, [uncommitted])];
  await unmasker.run('rollback');
  for (const [statement, values] of [
    [REVEAL, [randomUUID()]],
    [REVEAL, [id]],
    [REQUEST, ['ip', [people[0]!.ipToken], '']],
    [REQUEST, ['ip', [null], 'INC']],
    [REQUEST, ['device_id', [people[0]!.ipToken], 'INC']],
    ['select unmask.find($1, $2)', ['ip', '203.0.113.99']],
  ] as [string, unknown[]][])
    answers.push(await unmasker.run(statement, values));
  expect(answers.map(({ state }) => state)).toEqual([
    'ML103',
    'ML101',
    'ML102',
    'ML110',
    'ML110',
    'ML110',
    'ML101',
  ]);
  expect(answers.filter(({ hint }) => hint === undefined)).toEqual([]);
});
