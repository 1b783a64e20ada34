/** A reveal needs a committed request, whatever transactions the two run in. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { guard, loadPeople, quarantine, request, revealed, REVEAL, setStage } from '../support/unmask.ts';
import type { Person, Session, Stage } from '../support/unmask.ts';

let stage: Stage;
let person: Person;
let attacker: Session;
let bodies: string[];
beforeAll(async () => {
  stage = await setStage();
  const people = await loadPeople(stage.db, 2);
  person = people[0]!;
  await guard(stage, people);
  stage.secrets['body'] = `no JSON ${person.device}`;
  bodies = await quarantine(stage.db, [stage.secrets['body']]);
  attacker = await stage.join('attacker', 'logins_unmasker');
});
afterEach(async () => {
  await attacker.run('rollback; reset all');
  stage.refuteLeaks(attacker);
});
afterAll(() => stage.drop());

const requestSql = () => `select unmask.request('ip', array['${person.ipToken}']::uuid[], 'INC-1')`;

/** A DO block that requests, runs a statement, and reveals. */
const block = (between: string) => `do $$ declare id uuid; seen text; begin
  id := (${requestSql()}); ${between};
  select v.value into seen from unmask.reveal(id) v; rollback; end $$`;

test('the leak check finds a value that an authorised session was shown', async () => {
  const honest = await stage.join('honest', 'logins_unmasker');
  expect(stage.leaks(honest)).toEqual([]);
  await revealed(honest, await request(honest, 'ip', [person.ipToken]));
  expect(stage.leaks(honest)).toEqual([`${honest.login}: ip 0`]);
});

describe.each(['read committed', 'repeatable read', 'serializable'])('in %s', (isolation) => {
  test('a request cannot be revealed in its own transaction', async () => {
    await attacker.run(`begin isolation level ${isolation}`);
    const id = await request(attacker, 'ip', [person.ipToken]);
    expect(await attacker.state(REVEAL, [id])).toBe('ML103');
  });

  test('a request cannot be revealed in a savepoint of its transaction', async () => {
    await attacker.run(`begin isolation level ${isolation}; savepoint s`);
    const id = await request(attacker, 'ip', [person.ipToken]);
    await attacker.run('savepoint t');
    expect(await attacker.state(REVEAL, [id])).toBe('ML103');
  });

  test('a request cannot be revealed in its transaction after its savepoint is released', async () => {
    await attacker.run(`begin isolation level ${isolation}; savepoint s`);
    const id = await request(attacker, 'ip', [person.ipToken]);
    await attacker.run('release savepoint s');
    expect(await attacker.state(REVEAL, [id])).toBe('ML103');
  });

  test('a request cannot be revealed after its savepoint is rolled back', async () => {
    await attacker.run(`begin isolation level ${isolation}; savepoint s`);
    const id = await request(attacker, 'ip', [person.ipToken]);
    await attacker.run('rollback to savepoint s');
    expect(await attacker.state(REVEAL, [id])).toBe('ML101');
  });

  test('another session cannot reveal a request before its commit or with an older snapshot', async () => {
    const second = await stage.again(attacker);
    await second.run(`begin isolation level ${isolation}; select 1`);
    await attacker.run(`begin isolation level ${isolation}`);
    const id = await request(attacker, 'ip', [person.ipToken]);
    expect(await second.state(REVEAL, [id])).toBe('ML101');
    await second.run('rollback');
    if (isolation === 'read committed') return;
    await second.run(`begin isolation level ${isolation}; select 1`);
    await attacker.run('commit');
    expect(await second.state(REVEAL, [id])).toBe('ML101');
    expect(stage.leaks(second)).toEqual([]);
  });
});

test('a request cannot be revealed in the same statement', async () => {
  const states = [
    await attacker.state(`select * from unmask.reveal((${requestSql()}))`),
    await attacker.state(
      `with r as materialized (${requestSql()} as id) select v.* from r, unmask.reveal(r.id) v`,
    ),
    await attacker.state(`select v.* from (${requestSql()} as id offset 0) r, lateral unmask.reveal(r.id) v`),
  ];
  for (const state of states) expect(['ML101', 'ML103']).toContain(state);
});

test('a request cannot be revealed by a second statement in the same query string', async () => {
  expect(
    await attacker.state(
      `${requestSql()}; select v.* from unmask.pending_requests o, unmask.reveal(o.request_id) v`,
    ),
  ).toBe('ML103');
});

test.each([
  [
    'an SQL function',
    `create function pg_temp.both() returns text language sql as $f$
     select string_agg(v.value, '') from (select unmask.request('ip', array['TOKEN']::uuid[], 'INC-1') as id) r, unmask.reveal(r.id) v $f$`,
  ],
  [
    'a PL/pgSQL function',
    `create function pg_temp.both() returns text language plpgsql as $f$ declare id uuid; begin
     id := unmask.request('ip', array['TOKEN']::uuid[], 'INC-1'); return (select v.value from unmask.reveal(id) v); end $f$`,
  ],
  [
    'a PL/pgSQL function that catches errors',
    `create function pg_temp.both() returns text language plpgsql as $f$ declare id uuid; begin
     begin id := unmask.request('ip', array['TOKEN']::uuid[], 'INC-1'); exception when others then null; end;
     begin return (select v.value from unmask.reveal(id) v); exception when division_by_zero then return 'none'; end; end $f$`,
  ],
])('%s that requests and reveals is refused', async (_, definition) => {
  await attacker.run(definition.replace('TOKEN', person.ipToken));
  expect(['ML101', 'ML103']).toContain(await attacker.state('select pg_temp.both()'));
  await attacker.run('drop function pg_temp.both()');
});

test('a DO block that requests and reveals is refused unless it commits in between', async () => {
  expect(await attacker.state(block('null'))).toBe('ML103');
  const requests = 'select count(*)::int from unmask.requests';
  const superuser = await stage.superuser();
  const before = await superuser.value<number>(requests);
  expect(await attacker.state(block('commit'))).toBe('none');
  expect(await superuser.value<number>(requests)).toBe(before + 1);
});

test('a request in a prepared transaction cannot be revealed', async () => {
  const name = `${attacker.login}_prepared`;
  await attacker.run('begin');
  const id = await request(attacker, 'ip', [person.ipToken]);
  expect(await attacker.state(`prepare transaction '${name}'`)).toBe('none');
  expect(await attacker.state(REVEAL, [id])).toBe('ML101');
  await attacker.run(`rollback prepared '${name}'`);
  expect(await attacker.state(REVEAL, [id])).toBe('ML101');
});

test('a request that was rolled back cannot be revealed', async () => {
  await attacker.run('begin');
  const id = await request(attacker, 'ip', [person.ipToken]);
  await attacker.run('rollback');
  expect(await attacker.state(REVEAL, [id])).toBe('ML101');
});

test('a request for a user or for bodies cannot be revealed in its own transaction', async () => {
  for (const [statement, value] of [
    [`select unmask.request_user($1, 'INC-1')`, person.user],
    [`select unmask.request_quarantined($1, 'INC-1')`, bodies],
  ] as const) {
    await attacker.run('begin');
    const id = await attacker.value(statement, [value]);
    expect(await attacker.state(REVEAL, [id])).toBe('ML103');
    await attacker.run('rollback');
  }
});

test('a reveal in a read-only transaction is refused', async () => {
  const id = await request(attacker, 'ip', [person.ipToken]);
  await attacker.run('begin read only');
  expect(await attacker.state(REVEAL, [id])).toBe('25006');
});

test('rolling back a reveal that was read through a cursor does not remove its request', async () => {
  const id = await request(attacker, 'ip', [person.ipToken]);
  await attacker.run(
    `begin; declare c cursor for select count(*) from unmask.reveal('${id}'); fetch all from c; rollback`,
  );
  const { rows } = await stage.db.superuser.query('select from unmask.requests where request_id = $1', [id]);
  expect(rows).toHaveLength(1);
});
