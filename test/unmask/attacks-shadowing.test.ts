/** An attacker's objects that shadow the project's objects, and functions that leak their arguments. */
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { guard, loadPeople, request, revealed, setPolicy, setStage } from '../support/unmask.ts';
import type { Person, Session, Stage } from '../support/unmask.ts';

let stage: Stage;
let people: Person[];
let attacker: Session;
let foreign: string;
beforeAll(async () => {
  stage = await setStage();
  people = await loadPeople(stage.db, 3);
  await guard(stage, people);
  attacker = await stage.join('attacker', 'logins_unmasker');
  // The most that a login can be given without owning the project's objects: a schema of its own.
  await stage.db.superuser.query(`create schema evil authorization ${attacker.login}`);
  // Without it, functions that run as logins_owner could not find the objects in it.
  await attacker.run('grant usage on schema evil to public');
  const victim = await stage.join('victim', 'logins_unmasker');
  foreign = await request(victim, 'ip', [people[0]!.ipToken], 'what the victim is after');
});
afterEach(async () => {
  await attacker.run('rollback; reset all; discard temp');
  stage.refuteLeaks(attacker);
});
afterAll(() => stage.drop());

/** Tables that would deceive unmask.granted if it found them. */
const tables = (schema: string) => `
  create ${schema === 'pg_temp' ? 'temp ' : ''}table ${schema}.requests as
    select '${foreign}'::uuid as request_id, 'ip'::text as kind, array['${people[0]!.ipToken}']::uuid[] as tokens,
           session_user as requested_by, now() + interval '1 day' as expires_at, false as needs_approval, 1::bigint as event_id;
  create table ${schema}.approvals as select '${foreign}'::uuid as request_id, 'somebody'::name as approved_by;
  create table ${schema}.policy as select 'logins_unmasker'::name as role_name, 1000000 as values_per_request;
  create table ${schema}.vault (token uuid, key_version int, ciphertext bytea);
  create table ${schema}.keys (purpose text, version int, field text, state text, wrapped bytea);
  create table ${schema}.kek (kek bytea);
  create table ${schema}.events (event_id bigint);
  create table ${schema}.head (event_id bigint, hash bytea);
  create view ${schema}.pending_requests as select * from ${schema}.requests;
  create view ${schema}.user_logins as select null::uuid as masked_ip`;

const routines = (schema: string) => `
  create function ${schema}.spy(what anyelement) returns anyelement language plpgsql cost 0.0000001
    as $f$ begin raise notice 'seen: %', what; return what; end $f$;
  create function ${schema}.sha256(bytea) returns bytea language sql as $f$ select '\\x00'::bytea $f$;
  create function ${schema}.uuid_send(uuid) returns bytea language sql as $f$ select '\\x01'::bytea $f$;
  create function ${schema}.clock_timestamp() returns timestamptz language sql as $f$ select '-infinity'::timestamptz $f$;
  create function ${schema}.pg_current_xact_id() returns xid8 language sql as $f$ select '1'::xid8 $f$;
  create function ${schema}.pg_xact_status(xid8) returns text language sql as $f$ select 'committed' $f$;
  create function ${schema}.pg_has_role(name, oid, text) returns boolean language sql as $f$ select true $f$;
  create function ${schema}.convert_from(bytea, name) returns text language plpgsql
    as $f$ begin raise notice 'seen: %', $1; return 'x'; end $f$;
  create function ${schema}.same(uuid, uuid) returns boolean language sql as $f$ select true $f$;
  create function ${schema}.differ(name, name) returns boolean language sql as $f$ select false $f$;
  create function ${schema}.differ(bytea, bytea) returns boolean language sql as $f$ select false $f$;
  create operator ${schema}.= (leftarg = uuid, rightarg = uuid, function = ${schema}.same);
  create operator ${schema}.<> (leftarg = name, rightarg = name, function = ${schema}.differ);
  create operator ${schema}.<> (leftarg = bytea, rightarg = bytea, function = ${schema}.differ);
  create type ${schema}.request as (request_id uuid);
  create domain ${schema}.text as pg_catalog.text;
  create domain ${schema}.uuid as pg_catalog.uuid check (value is not null)`;

test.each(['pg_temp', 'evil'])(
  'objects in %s that shadow the project’s objects change nothing',
  async (schema) => {
    expect(await attacker.state('begin')).toBe('none');
    for (const statements of [tables(schema), routines(schema)]) {
      const { state } = await attacker.run(statements);
      expect(state).toBe('none');
    }
    for (const path of [
      schema,
      `${schema}, pg_catalog`,
      `pg_temp, ${schema}, pg_catalog, unmask, masking, audit`,
    ]) {
      await attacker.run(`set search_path = ${path}`);
      await attacker.run('savepoint s');
      expect(await attacker.state(`select * from unmask.reveal('${foreign}')`)).toBe('ML102');
      await attacker.run('rollback to s');
      const id = await attacker.value(
        `select unmask.request('ip', array['${people[1]!.ipToken}']::pg_catalog.uuid[], 'INC-1')`,
      );
      expect(await attacker.state(`select * from unmask.reveal('${String(id)}')`)).toBe('ML103');
      await attacker.run('rollback to s');
      expect(
        await attacker.state(
          `select unmask.request('device_id', array['${people[1]!.ipToken}']::pg_catalog.uuid[], 'x')`,
        ),
      ).toBe('ML110');
      await attacker.run('rollback to s');
      expect(await attacker.state(`select unmask.find('ip', '203.0.113.1')`)).toBe('ML101');
      await attacker.run('rollback to s; release s');
    }
  },
);

test('shadowing functions receive no value during a reveal', async () => {
  const honest = await stage.join('honest', 'logins_unmasker');
  const id = await request(honest, 'ip', [people[2]!.ipToken]);
  await honest.run(tables('pg_temp'));
  await honest.run(routines('pg_temp'));
  await honest.run('set search_path = pg_temp, pg_catalog');
  const notices = honest.notices.length;
  expect(await revealed(honest, id)).toEqual({ [people[2]!.ipToken]: people[2]!.ip });
  expect(honest.notices.length).toBe(notices);
  await honest.run('discard temp');
});

test('an unmasker cannot create casts, or functions in existing schemas', async () => {
  for (const schema of ['unmask', 'masking', 'audit', 'crypto', 'staging', 'public', 'pg_catalog']) {
    const state = await attacker.state(
      `create function ${schema}.granted(uuid) returns int language sql as 'select 1'`,
    );
    expect({ schema, state }).toEqual({ schema, state: '42501' });
  }
  expect(await attacker.state('create cast (text as uuid) with inout as implicit')).toBe('42501');
  expect(await attacker.state('create cast (bytea as text) with inout as implicit')).toBe('42501');
});

test('an argument of the attacker’s own type is cast with the privileges of the caller', async () => {
  await attacker.run(`begin; create type pg_temp.box as (t text);
    create function pg_temp.unbox(b pg_temp.box) returns uuid[] language plpgsql as $f$
      begin raise notice 'as %', current_user; return array[(b).t::uuid]; end $f$;
    create cast (pg_temp.box as uuid[]) with function pg_temp.unbox(pg_temp.box) as implicit`);
  const notices = attacker.notices.length;
  expect(
    await attacker.state(`select unmask.request('ip', row('${people[1]!.ipToken}')::pg_temp.box, 'INC-1')`),
  ).toBe('none');
  expect(attacker.notices.slice(notices)).toEqual([`as ${attacker.login}`]);
});

/** Shows its argument in a notice, and is so cheap that the planner evaluates it first. */
const LEAK = `create function pg_temp.leak(what text) returns boolean language plpgsql cost 0.0000001
  as $f$ begin raise notice 'seen: %', what; return true; end $f$`;

test('a leaky function in a WHERE clause sees only the rows that its caller may see', async () => {
  await setPolicy(stage.db, 'logins_unmasker', { approvalAbove: 0 });
  await request(attacker, 'ip', [people[1]!.ipToken], 'what the attacker is after');
  await setPolicy(stage.db, 'logins_unmasker');
  await attacker.run(LEAK);
  const seenIn = async (view: string, column = 'v') => {
    const before = attacker.notices.length;
    const { state, rows } = await attacker.run(`select * from ${view} v where pg_temp.leak(${column}::text)`);
    return { state, rows: rows.length, seen: attacker.notices.slice(before) };
  };
  // The planner could evaluate a condition on columns of one table before it joins and filters.
  for (const column of ['reason', 'requested_by', 'expires_at', 'approved_by']) {
    expect((await seenIn('unmask.pending_requests', `v.${column}`)).seen.length).toBeLessThanOrEqual(1);
  }
  const requests = await seenIn('unmask.pending_requests');
  expect(requests.rows).toBe(1);
  expect(requests.seen).toEqual([expect.stringContaining('what the attacker is after')]);
  expect(requests.seen[0]).not.toContain(foreign);
  const logins = await seenIn('public.user_logins_compat');
  expect({ ...logins, seen: logins.seen.length }).toEqual({ state: 'none', rows: 3, seen: 3 });
  for (const view of ['staging.inbox', 'masking.kek_inbox', 'masking.next_kek_inbox']) {
    expect(await seenIn(view)).toEqual({ state: '42501', rows: 0, seen: [] });
  }
});

test('a leaky function sees nothing in an inbox, not even for a role that may write to it', async () => {
  const custodian = await stage.join('custodian', 'logins_custodian');
  const loader = await stage.join('loader', 'logins_loader');
  for (const [session, inbox] of [
    [custodian, 'masking.kek_inbox'],
    [custodian, 'masking.next_kek_inbox'],
    [loader, 'staging.inbox'],
  ] as const) {
    await session.run(LEAK.replace('function', 'or replace function'));
    expect(await session.state(`select from ${inbox} v where pg_temp.leak(v::text)`)).toBe('42501');
    // 55000: an inbox has no table to update. 42703: staging.inbox has no column kek.
    expect(await session.state(`update ${inbox} v set kek = kek where pg_temp.leak(v::text)`)).toMatch(
      /^(55000|42703)$/,
    );
    expect(await session.state(`delete from ${inbox} v where pg_temp.leak(v::text)`)).toBe('55000');
    expect(await session.state(`create temp view mine as select * from ${inbox}; select * from mine`)).toBe(
      '42501',
    );
    expect(session.notices).toEqual([]);
  }
  expect(await custodian.state(`insert into masking.kek_inbox values ('\\x00') returning kek`)).toBe('42501');
  stage.refuteLeaks(custodian, loader);
});

test('a leaky function in a WHERE clause over a refused reveal sees nothing', async () => {
  await attacker.run(LEAK);
  const before = attacker.notices.length;
  expect(
    await attacker.state(`select * from unmask.reveal($1) r where pg_temp.leak(r.value)`, [foreign]),
  ).toBe('ML102');
  expect(attacker.notices.length).toBe(before);
});
