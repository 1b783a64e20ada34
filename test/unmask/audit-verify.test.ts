/** What audit.verify() sees, and what only a head that is kept elsewhere shows. */
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
/** A superuser with the triggers off, in a transaction that is rolled back: whoever has every right. */
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

/** What the verdict is after a forgery: the first broken link, or intact. */
async function after(statement: string, known = ''): Promise<number | 'intact' | null> {
  await forge(statement);
  const { intact, broken } = await verdictOf(forger, known);
  return intact ? 'intact' : broken;
}

/** Computes every hash from some event on anew, and the heads: what somebody does who knows how. */
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

/** Events 4 and 7 with some of their columns exchanged. */
const swap = (columns: string) => `
    create temp table two on commit drop as select * from audit.events where event_id in (4, 7);
    update audit.events e set (${columns}) = (select ${columns} from two t where t.event_id = 11 - e.event_id)
     where event_id in (4, 7)`;

/** One more event, by its number, with a hash that is none. */
const add = (n: number) => `insert into audit.events
    select ${n}, at, 'somebody', action, details, array[hash], sha256('x') from audit.events where event_id = ${n - 1}`;

test('an untouched record is intact, and its head is that of the last event', async () => {
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
])('an edited %s is seen where it is', async (_, change) => {
  for (const n of [1, 5]) {
    await forger.run('savepoint s');
    expect(await after(`update audit.events set ${change} where event_id = ${n}`)).toBe(n);
    await forger.run('rollback to s');
  }
  const last = (await verdictOf(forger)).head!;
  expect(await after(`update audit.events set ${change} where event_id = ${last}`)).toBe(last);
});

test('an event whose time was put to infinity is seen where it is', async () => {
  expect(await after(`update audit.events set at = 'infinity' where event_id = 5`)).toBe(5);
});

test('an event whose number was changed is seen', async () => {
  expect(await after(`update audit.events set event_id = 1000 where event_id = 5`)).toBe(6);
  await forger.run('rollback; begin');
  expect(await after(`update audit.events set event_id = 0 where event_id = 5`)).toBe(0);
});

test.each([
  ['the first', '= 1', 2],
  ['one in the middle', '= 5', 6],
  ['several', 'between 4 and 6', 7],
  ['the first ones', '< 4', 4],
])('%s removed is seen at the event after', async (_, which, broken) => {
  expect(await after(`delete from audit.events where event_id ${which}`)).toBe(broken);
});

test('two events that changed places are seen at the first of them', async () => {
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

test('an event that was added in between, or at the end behind the head, is seen', async () => {
  const { head } = await verdictOf(forger);
  expect(await after(add(head! + 1))).toBe(head! + 1);
  await forger.run('rollback; begin');
  expect(
    await after(`update audit.events set event_id = event_id + 1000 where event_id >= 5;
      ${add(5)}; update audit.events set event_id = event_id - 999 where event_id >= 1000`),
  ).toBe(5);
});

test('an event behind the head with a good hash of its own is seen as well', async () => {
  const { head } = await verdictOf(forger);
  const add = `do $$ declare e audit.events; begin
      select * into e from audit.events where event_id = ${head};
      e.event_id := e.event_id + 1; e.previous_hashes := array[e.hash]; e.hash := audit.hash_of(e);
      insert into audit.events select e.*;
    end $$`;
  expect(await after(add)).toBe(head! + 1);
});

test('a record that was cut off is seen while its head stands', async () => {
  const { head } = await verdictOf(forger);
  expect(await after(`delete from audit.events where event_id > ${head! - 2}`)).toBe(head);
  await forger.run('rollback; begin');
  expect(await after('delete from audit.events')).toBe(head);
});

/** Makes an event of before the only head. */
const putHead = (n: number) =>
  `update audit.heads h set event_id = e.event_id, hash = e.hash from audit.events e where e.event_id = ${n}`;

test('a record whose head was set back, or put elsewhere, without cutting it is seen', async () => {
  const { head } = await verdictOf(forger);
  expect(await after(putHead(head! - 2))).toBe(head);
  await forger.run('rollback; begin');
  expect(await after(`update audit.heads set hash = sha256('x')`)).toBe(head);
});

test('a record that was cut off with its head set back looks intact, and is seen through a head known before', async () => {
  const { head, hash } = await verdictOf(forger);
  const cut = `delete from audit.events where event_id > ${head! - 2}; ${putHead(head! - 2)}`;
  expect(await after(cut)).toBe('intact');
  expect(await after('select 1', `${head}, '${hash}'`)).toBe(head);
});

test('a record that was rebuilt to its end looks intact, and is seen through a head known before', async () => {
  const { head, hash } = await verdictOf(forger);
  const { rows } = await forger.run(
    `select encode(hash, 'hex') as hash from audit.events where event_id = 3`,
  );
  const before = rows[0]!['hash'] as string;
  await forge(`update audit.events set actor = 'somebody' where event_id = 5`);
  expect(await after(REBUILD(5))).toBe('intact');
  expect(await after('select 1', `${head}, '${hash}'`)).toBe(head);
  // What came before the forgery is as it was.
  expect(await after('select 1', `3, '${before}'`)).toBe('intact');
});

test('a known head is recognised in either case, and later when the record has grown', async () => {
  const { head, hash } = await verdictOf(forger);
  expect(await after('select 1', `${head}, '${hash.toUpperCase()}'`)).toBe('intact');
  expect(await after(`select audit.append('more', '{}')`, `${head}, '${hash}'`)).toBe('intact');
  expect(await after('select 1', `${head}, null`)).toBe(head);
});

test('a known hash without its number is not taken for good', async () => {
  expect(await after('select 1', `known_hash => 'ab'`)).not.toBe('intact');
});

test('a record whose heads were removed is not intact', async () => {
  expect(await after('delete from audit.heads')).not.toBe('intact');
});

const idOf = (action: string) =>
  forger.value<number>(`select max(event_id)::int from audit.events where action = '${action}'`);
const headCount = () => forger.value<number>('select count(*)::int from audit.heads');

describe('with several heads', () => {
  let other: Session;
  beforeEach(async () => {
    // Two transactions that do not see each other make a head each; what comes next joins them.
    other = await stage.superuser();
    await forger.run('rollback');
    await other.run('begin');
    await forger.run('begin');
    await other.value(`select audit.append('left', '{}')`);
    await forger.value(`select audit.append('right', '{}')`);
    await other.run('commit');
  });

  test('the record is intact, and the next event joins those that it can take', async () => {
    expect(await headCount()).toBe(2);
    expect((await verdictOf(forger)).intact).toBe(true);
    const joined = await forger.value<number>(`select audit.append('joined', '{}')::int`);
    expect(await verdictOf(forger)).toMatchObject({ intact: true, head: joined });
    expect(await headCount()).toBe(1);
  });

  test.each(['left', 'right'])(
    'the %s one removed is seen, with its head and after it was joined',
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

  test('one head removed is seen', async () => {
    const id = await idOf('left');
    expect(await after(`delete from audit.heads where event_id = ${id}`)).toBe(id);
  });
});

test('numbers that a rollback skipped mean nothing', async () => {
  await forger.run(`savepoint s; select audit.append('gone', '{}'); rollback to s`);
  expect(await after(`select audit.append('after', '{}')`)).toBe('intact');
});

test('a hundred thousand events are verified in seconds', async () => {
  // As append does, but for the heads in between.
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

test('without a head nothing more is recorded, and so nothing is shown', async () => {
  await forge('delete from audit.heads');
  expect(await forger.state(`select audit.append('more', '{}')`)).toBe('23502');
});
