/** What audit.verify() detects, and what it detects only with a head that is stored elsewhere. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { loadPeople, request, setStage } from '../support/unmask.ts';
import type { Session, Stage } from '../support/unmask.ts';

const EVENTS = 10;

interface Verdict {
  intact: boolean;
  events: number;
  head: number | null;
  hash: string;
  broken: number | null;
}

let stage: Stage;
let auditor: Session;
/** A superuser who has disabled the triggers. Each test rolls its transaction back. */
let forger: Session;
beforeAll(async () => {
  stage = await setStage();
  const people = await loadPeople(stage.db, EVENTS);
  const unmasker = await stage.join('unmasker', 'logins_unmasker');
  for (const { ipToken } of people) await request(unmasker, 'ip', [ipToken]);
  auditor = await stage.join('auditor', 'logins_auditor');
  forger = await stage.superuser();
  await forger.run(`set session_replication_role = replica`);
});
beforeEach(async () => {
  await forger.run('begin');
});
afterEach(async () => {
  await forger.run('rollback');
});
afterAll(() => stage.drop());

async function verdictOf(session: Session, known = ''): Promise<Verdict> {
  const { state, rows } = await session.run(
    `select intact, events::int, head_event_id::int as head, head_hash as hash, broken_event_id::int as broken
       from audit.verify(${known})`,
  );
  expect(state).toBe('none');
  return rows[0] as unknown as Verdict;
}

async function forge(statement: string): Promise<void> {
  expect(await forger.state(statement)).toBe('none');
}

/** Verifies after a forgery. Returns the first broken event, or `intact`. */
async function after(statement: string, known = ''): Promise<number | 'intact' | null> {
  await forge(statement);
  const { intact, broken } = await verdictOf(forger, known);
  return intact ? 'intact' : broken;
}

/** Computes all hashes from an event on again, and the heads, as a skilled forger would. */
const REBUILD = (from: number) => `
  do $$ declare e audit.events; renamed jsonb := '{}'; former text; begin
    for e in select * from audit.events where event_id >= ${from} order by event_id loop
      former := encode(e.hash, 'hex');
      e.previous_hashes := array(select decode(coalesce(renamed ->> encode(p, 'hex'), encode(p, 'hex')), 'hex') from unnest(e.previous_hashes) p);
      e.hash := audit.hash_of(e);
      renamed := renamed || jsonb_build_object(former, encode(e.hash, 'hex'));
      update audit.events set previous_hashes = e.previous_hashes, hash = e.hash where event_id = e.event_id;
      update audit.heads set hash = e.hash where event_id = e.event_id;
    end loop;
  end $$`;

/** Exchanges columns of events 4 and 7. */
const swap = (columns: string) => `
    create temp table two on commit drop as select * from audit.events where event_id in (4, 7);
    update audit.events e set (${columns}) = (select ${columns} from two t where t.event_id = 11 - e.event_id)
     where event_id in (4, 7)`;

/** Adds an event with a number and a wrong hash. */
const add = (n: number) => `insert into audit.events
    select ${n}, at, 'somebody', action, details, array[hash], sha256('x') from audit.events where event_id = ${n - 1}`;

test('an unchanged audit log is intact, and its head is the last event', async () => {
  const { intact, events, head, hash, broken } = await verdictOf(auditor);
  expect({ intact, events, broken }).toEqual({ intact: true, events: head, broken: null });
  expect(
    await auditor.value(`select encode(hash, 'hex') from audit.events where event_id = $1`, [head]),
  ).toBe(hash);
});

test.each([
  ['at', `at = at + interval '1 microsecond'`],
  ['actor', `actor = 'somebody'`],
  ['action', `action = 'approve'`],
  ['details', `details = details || '{"values": 0}'`],
  ['previous_hashes', `previous_hashes = array[sha256('x')]`],
  ['hash', `hash = sha256('x')`],
])('an edited %s is detected at its event', async (_, change) => {
  for (const n of [1, 5]) {
    await forger.run('savepoint s');
    expect(await after(`update audit.events set ${change} where event_id = ${n}`)).toBe(n);
    await forger.run('rollback to s');
  }
  const last = (await verdictOf(forger)).head!;
  expect(await after(`update audit.events set ${change} where event_id = ${last}`)).toBe(last);
});

test('a time of infinity is detected at its event', async () => {
  expect(await after(`update audit.events set at = 'infinity' where event_id = 5`)).toBe(5);
});

test('a changed event number is detected', async () => {
  expect(await after(`update audit.events set event_id = 1000 where event_id = 5`)).toBe(6);
  await forger.run('rollback; begin');
  expect(await after(`update audit.events set event_id = 0 where event_id = 5`)).toBe(0);
});

test.each([
  ['the first event', '= 1', 2],
  ['an event in the middle', '= 5', 6],
  ['several events', 'between 4 and 6', 7],
  ['the first three events', '< 4', 4],
])('the removal of %s is detected at the next event', async (_, which, broken) => {
  expect(await after(`delete from audit.events where event_id ${which}`)).toBe(broken);
});

test('two exchanged events are detected at the first of them', async () => {
  for (const columns of [
    'at, actor, action, details',
    'at, actor, action, details, previous_hashes, hash',
    'previous_hashes, hash',
  ]) {
    await forger.run('savepoint s');
    expect(await after(swap(columns))).toBe(4);
    await forger.run('rollback to s');
  }
});

test('an event that was added in the middle or after the head is detected', async () => {
  const { head } = await verdictOf(forger);
  expect(await after(add(head! + 1))).toBe(head! + 1);
  await forger.run('rollback; begin');
  expect(
    await after(`update audit.events set event_id = event_id + 1000 where event_id >= 5;
      ${add(5)}; update audit.events set event_id = event_id - 999 where event_id >= 1000`),
  ).toBe(5);
});

test('an event that was added after the head with a valid hash is detected', async () => {
  const { head } = await verdictOf(forger);
  const add = `do $$ declare e audit.events; begin
      select * into e from audit.events where event_id = ${head};
      e.event_id := e.event_id + 1; e.previous_hashes := array[e.hash]; e.hash := audit.hash_of(e);
      insert into audit.events select e.*;
    end $$`;
  expect(await after(add)).toBe(head! + 1);
});

test('a truncated audit log is detected if its head is unchanged', async () => {
  const { head } = await verdictOf(forger);
  expect(await after(`delete from audit.events where event_id > ${head! - 2}`)).toBe(head);
  await forger.run('rollback; begin');
  expect(await after('delete from audit.events')).toBe(head);
});

/** Makes an event the only head. */
const putHead = (n: number) =>
  `update audit.heads h set event_id = e.event_id, hash = e.hash from audit.events e where e.event_id = ${n}`;

test('a changed head is detected if no event was removed', async () => {
  const { head } = await verdictOf(forger);
  expect(await after(putHead(head! - 2))).toBe(head);
  await forger.run('rollback; begin');
  expect(await after(`update audit.heads set hash = sha256('x')`)).toBe(head);
});

test('a truncated audit log with a changed head is detected only with a known head', async () => {
  const { head, hash } = await verdictOf(forger);
  const cut = `delete from audit.events where event_id > ${head! - 2}; ${putHead(head! - 2)}`;
  expect(await after(cut)).toBe('intact');
  expect(await after('select 1', `${head}, '${hash}'`)).toBe(head);
});

test('an audit log that was rebuilt to its end is detected only with a known head', async () => {
  const { head, hash } = await verdictOf(forger);
  const { rows } = await forger.run(
    `select encode(hash, 'hex') as hash from audit.events where event_id = 3`,
  );
  const before = rows[0]!['hash'] as string;
  await forge(`update audit.events set actor = 'somebody' where event_id = 5`);
  expect(await after(REBUILD(5))).toBe('intact');
  expect(await after('select 1', `${head}, '${hash}'`)).toBe(head);
  // A head from before the forgery still matches.
  expect(await after('select 1', `3, '${before}'`)).toBe('intact');
});

test('a known head matches in upper or lower case, and also after more events', async () => {
  const { head, hash } = await verdictOf(forger);
  expect(await after('select 1', `${head}, '${hash.toUpperCase()}'`)).toBe('intact');
  expect(await after(`select audit.append('more', '{}')`, `${head}, '${hash}'`)).toBe('intact');
  expect(await after('select 1', `${head}, null`)).toBe(head);
});

test('a known hash without an event number never matches', async () => {
  expect(await after('select 1', `known_hash => 'ab'`)).not.toBe('intact');
});

test('an audit log without heads is not intact', async () => {
  expect(await after('delete from audit.heads')).not.toBe('intact');
});

const idOf = (action: string) =>
  forger.value<number>(`select max(event_id)::int from audit.events where action = '${action}'`);
const headCount = () => forger.value<number>('select count(*)::int from audit.heads');

describe('with several heads', () => {
  let other: Session;
  beforeEach(async () => {
    // Two transactions that do not see each other append one head each. The next event joins both.
    other = await stage.superuser();
    await forger.run('rollback');
    await other.run('begin');
    await forger.run('begin');
    await other.value(`select audit.append('left', '{}')`);
    await forger.value(`select audit.append('right', '{}')`);
    await other.run('commit');
  });

  test('the audit log is intact, and the next event joins them', async () => {
    expect(await headCount()).toBe(2);
    expect((await verdictOf(forger)).intact).toBe(true);
    const joined = await forger.value<number>(`select audit.append('joined', '{}')::int`);
    expect(await verdictOf(forger)).toMatchObject({ intact: true, head: joined });
    expect(await headCount()).toBe(1);
  });

  test.each(['left', 'right'])(
    'the removal of the %s event is detected, before and after it is joined',
    async (side) => {
      const removed = `delete from audit.events where action = '${side}' and event_id = ${await idOf(side)}`;
      const id = await idOf(side);
      await forger.run('savepoint s');
      expect(await after(removed)).toBe(id);
      await forger.run('rollback to s');
      const joined = await forger.value<number>(`select audit.append('joined', '{}')::int`);
      expect(await after(removed)).toBe(joined);
    },
  );

  test('the removal of one head is detected', async () => {
    const id = await idOf('left');
    expect(await after(`delete from audit.heads where event_id = ${id}`)).toBe(id);
  });
});

test('event numbers that a rollback skipped are not reported', async () => {
  await forger.run(`savepoint s; select audit.append('gone', '{}'); rollback to s`);
  expect(await after(`select audit.append('after', '{}')`)).toBe('intact');
});

test('a hundred thousand events are verified in seconds', async () => {
  // Like audit.append, but without the heads in between.
  await forge(`do $$ declare e audit.events; begin
      select * into e from audit.events order by event_id desc limit 1;
      for n in 1 .. 100000 loop
        e.previous_hashes := array[e.hash]; e.event_id := e.event_id + 1; e.hash := audit.hash_of(e);
        insert into audit.events select e.*;
      end loop;
      update audit.heads set event_id = e.event_id, hash = e.hash;
    end $$`);
  const startedAt = performance.now();
  expect((await verdictOf(forger)).intact).toBe(true);
  expect(performance.now() - startedAt).toBeLessThan(10_000);
});

test('without a head no event can be added, so nothing can be revealed', async () => {
  await forge('delete from audit.heads');
  expect(await forger.state(`select audit.append('more', '{}')`)).toBe('23502');
});
