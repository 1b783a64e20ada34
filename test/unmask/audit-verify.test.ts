/** What audit.verify() sees, and what only a head that is kept elsewhere shows. */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
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

/** Computes every hash from some event on anew, and the head: what somebody does who knows how. */
const REBUILD = (from: number) => `
  do $$ declare e audit.events; previous bytea := coalesce((select hash from audit.events where event_id = ${from} - 1), '\\x'); begin
    for e in select * from audit.events where event_id >= ${from} order by event_id loop
      e.previous_hash := previous;
      previous := audit.hash_of(e);
      update audit.events set previous_hash = e.previous_hash, hash = previous where event_id = e.event_id;
    end loop;
    update audit.head set hash = previous, event_id = (select max(event_id) from audit.events);
  end $$`;

/** Events 4 and 7 with some of their columns exchanged. */
const swap = (columns: string) => `
    create temp table two on commit drop as select * from audit.events where event_id in (4, 7);
    update audit.events e set (${columns}) = (select ${columns} from two t where t.event_id = 11 - e.event_id)
     where event_id in (4, 7)`;

/** One more event, by its number, with a hash that is none. */
const add = (n: number) => `insert into audit.events
    select ${n}, at, 'somebody', action, details, hash, sha256('x') from audit.events where event_id = ${n - 1}`;

test('an untouched chain is intact, and its head is that of the last event', async () => {
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
  ['previous_hash', `previous_hash = sha256('x')`],
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
    'at, actor, action, details, previous_hash, hash',
    'previous_hash, hash',
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
      e.event_id := e.event_id + 1; e.previous_hash := e.hash; e.hash := audit.hash_of(e);
      insert into audit.events select e.*;
    end $$`;
  expect(await after(add)).not.toBe('intact');
});

test('a chain that was cut off is seen while its head stands', async () => {
  const { head } = await verdictOf(forger);
  expect(await after(`delete from audit.events where event_id > ${head! - 2}`)).toBe(head! - 1);
  await forger.run('rollback; begin');
  expect(await after('delete from audit.events')).toBe(1);
});

test('a chain whose head was set back, or put elsewhere, without cutting it is seen', async () => {
  const { head } = await verdictOf(forger);
  const setBack = `update audit.head h set event_id = e.event_id, hash = e.hash from audit.events e where e.event_id = ${head! - 2}`;
  expect(await after(setBack)).not.toBe('intact');
  await forger.run('rollback; begin');
  expect(await after(`update audit.head set hash = sha256('x')`)).toBe(head);
});

test('a chain that was cut off with its head set back looks intact, and is seen through a head known before', async () => {
  const { head, hash } = await verdictOf(forger);
  const cut = `delete from audit.events where event_id > ${head! - 2};
    update audit.head h set event_id = e.event_id, hash = e.hash from audit.events e where e.event_id = ${head! - 2}`;
  expect(await after(cut)).toBe('intact');
  expect(await after('select 1', `${head}, '${hash}'`)).toBe(head);
});

test('a chain that was rebuilt to its end looks intact, and is seen through a head known before', async () => {
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

test('a known head is recognised in either case, and later when the chain has grown', async () => {
  const { head, hash } = await verdictOf(forger);
  expect(await after('select 1', `${head}, '${hash.toUpperCase()}'`)).toBe('intact');
  expect(await after(`select audit.append('more', '{}')`, `${head}, '${hash}'`)).toBe('intact');
  expect(await after('select 1', `${head}, null`)).toBe(head);
});

test('a known hash without its number is not taken for good', async () => {
  expect(await after('select 1', `known_hash => 'ab'`)).not.toBe('intact');
});

test('a chain whose head was removed is not intact', async () => {
  expect(await after('delete from audit.head')).not.toBe('intact');
});

test('without a head nothing more is recorded, and so nothing is shown', async () => {
  await forge('delete from audit.head');
  expect(await forger.state(`select audit.append('more', '{}')`)).toBe('23502');
});
