/** Plans and messages that Postgres prints about its own work. Any login may change the settings for them. */
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { guard, loadPeople, quarantine, request, REVEAL, setStage } from '../support/unmask.ts';
import { event, mask, message, stage as stageBatch } from '../support/staging.ts';
import type { Person, Session, Stage } from '../support/unmask.ts';

const EXPLAINS = [
  'explain (verbose)',
  'explain (verbose, analyze, buffers, wal, settings)',
  'explain (verbose, analyze, format json)',
  'explain (verbose, generic_plan)',
  'explain (analyze, serialize text, memory)',
];
/** Prints every plan to the client and to the server's log. */
const PLANS = `set client_min_messages = log; set debug_print_parse = on; set debug_print_rewritten = on;
  set debug_print_plan = on; set plan_cache_mode = force_custom_plan`;
const DEBUG_MESSAGES = `set client_min_messages = debug5; set plpgsql.print_strict_params = on; set plpgsql.extra_warnings = 'all'`;
const EXTRA_ERRORS = `set plpgsql.print_strict_params = on; set plpgsql.extra_errors = 'all'`;

let stage: Stage;
let people: Person[];
let unmasker: Session;
let worker: Session;
let custodian: Session;
beforeAll(async () => {
  stage = await setStage();
  people = await loadPeople(stage.db, 3);
  await guard(stage, people);
  unmasker = await stage.join('unmasker', 'logins_unmasker');
  worker = await stage.join('worker', 'logins_worker');
  custodian = await stage.join('custodian', 'logins_custodian');
});
afterEach(() => stage.refuteLeaks(unmasker, worker, custodian));
afterAll(() => stage.drop());

/** A new session, because PL/pgSQL compiles functions and reads its settings once a session. */
async function traced(session: Session, settings: string): Promise<Session> {
  const fresh = await stage.again(session);
  expect(await fresh.state(settings)).toBe('none');
  return fresh;
}

test.each(EXPLAINS)(
  '%s of request, reveal, find and mask_batch shows no value and no key',
  async (explain) => {
    const id = await request(unmasker, 'ip', [people[0]!.ipToken]);
    await unmasker.run(`select unmask.request_find('ip', '203.0.113.250', 'INC-1')`);
    const batch = await stageBatch(stage.db, [message(event({ ip: people[1]!.ip })), message('no JSON')]);
    const answers = [
      await unmasker.run(
        `${explain} select unmask.request('ip', array['${people[0]!.ipToken}']::uuid[], 'INC-1')`,
      ),
      // Counts rows, because a reveal is meant to show the value.
      await unmasker.run(`${explain} select count(*) from unmask.reveal('${id}')`),
      await unmasker.run(`${explain} select r.token from unmask.reveal('${id}') r where r.value <> 'x'`),
      await unmasker.run(`${explain} select unmask.find('ip', '203.0.113.250')`),
      await worker.run(`${explain} select receipt_handle from masking.mask_batch('${batch}')`),
    ];
    expect(answers.map(({ state }) => state)).toEqual(Array(5).fill('none'));
  },
);

test('plans printed during a reveal or a find contain no key and no value', async () => {
  const session = await traced(unmasker, PLANS);
  const id = await request(session, 'ip', [people[0]!.ipToken]);
  const before = session.notices.length;
  expect(await session.state(`select count(*) from unmask.reveal('${id}')`)).toBe('none');
  expect(session.notices.length).toBeGreaterThan(before + 5);
  await session.run(`select unmask.request_find('ip', '203.0.113.251', 'INC-1')`);
  expect(await session.state(`select unmask.find('ip', '203.0.113.251')`)).toBe('none');
  const [body] = await quarantine(stage.db, ['no JSON']);
  const bodies = await session.value(`select unmask.request_quarantined(array['${body}']::uuid[], 'INC-1')`);
  expect(await session.state(`select count(*) from unmask.reveal('${String(bodies)}')`)).toBe('none');
  stage.refuteLeaks(session);
}, 60_000);

test('plans printed while a batch is masked contain no key and no value', async () => {
  const session = await traced(worker, PLANS);
  const batch = await stageBatch(stage.db, [
    message(event({ ip: people[0]!.ip, device_id: people[0]!.device })),
    message(`{"user_id":"\\u0000"}`),
  ]);
  expect(await session.state(`select receipt_handle from masking.mask_batch('${batch}')`)).toBe('none');
  expect(session.notices.length).toBeGreaterThan(5);
  stage.refuteLeaks(session);
});

test('debug messages contain no key and no value', async () => {
  const session = await traced(unmasker, DEBUG_MESSAGES);
  const id = await request(session, 'ip', [people[0]!.ipToken]);
  expect(await session.state(`select count(*) from unmask.reveal('${id}')`)).toBe('none');
  const masking = await traced(worker, DEBUG_MESSAGES);
  const batch = await stageBatch(stage.db, [message(event({ ip: people[0]!.ip })), message('no JSON')]);
  expect(await mask(stage.db, batch)).toHaveLength(2);
  await masking.run(`select receipt_handle from masking.mask_batch('${batch}')`);
  stage.refuteLeaks(session, masking);
});

test('extra errors of PL/pgSQL contain no parameter', async () => {
  const session = await traced(unmasker, EXTRA_ERRORS);
  const id = await request(unmasker, 'ip', [people[0]!.ipToken]);
  await session.run(`select count(*) from unmask.reveal('${id}')`);
  await session.run(`select unmask.request_find('ip', '203.0.113.252', 'INC-1')`);
  const masking = await traced(worker, EXTRA_ERRORS);
  const batch = await stageBatch(stage.db, [message(event({ ip: people[0]!.ip })), message('no JSON')]);
  await masking.run(`select receipt_handle from masking.mask_batch('${batch}')`);
  await mask(stage.db, batch);
  expect(stage.leaks(session, masking)).toEqual([]);
});

test('no login can change the settings that would show more', async () => {
  for (const setting of [
    'log_min_messages = fatal',
    'log_parameter_max_length = -1',
    'session_preload_libraries = x',
    'session_replication_role = replica',
    'jit_dump_bitcode = on',
    'log_executor_stats = on',
    'track_functions = none',
  ]) {
    for (const session of [unmasker, worker, custodian]) {
      const state = await session.state(`set ${setting}`);
      expect({ setting, state }).toEqual({ setting, state: '42501' });
    }
  }
  for (const session of [unmasker, worker, custodian]) {
    expect(['42501', '58P01', '42704']).toContain(await session.state(`load 'auto_explain'`));
  }
});

test('pg_stat_activity does not show a revealed value', async () => {
  const id = await request(unmasker, 'ip', [people[0]!.ipToken]);
  const honest = await stage.again(unmasker);
  expect((await honest.run(REVEAL, [id])).rows).toHaveLength(1);
  const activity = await (await stage.superuser()).run('select query from pg_stat_activity');
  expect(JSON.stringify(activity.rows)).not.toContain(people[0]!.ip);
});
