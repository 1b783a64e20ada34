/** Plans of statements that use keys. With debug_print_plan, a session sees the plans of its statements. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import { event, message, stage as stageBatch } from '../support/staging.ts';
import { guard, loadPeople, quarantine, setStage } from '../support/unmask.ts';
import type { Person, Session, Stage } from '../support/unmask.ts';

const PLANS = `set client_min_messages = log; set debug_print_plan = on; set plan_cache_mode = force_custom_plan`;

let stage: Stage;
let people: Person[];
beforeEach(async () => {
  stage = await setStage();
  people = await loadPeople(stage.db, 2);
  await quarantine(stage.db, ['no JSON']);
  await guard(stage, people);
});
afterEach(() => stage.drop());

async function traced(role: string): Promise<Session> {
  const session = await stage.join(role, `logins_${role}`);
  await session.run(PLANS);
  return session;
}

test('the plans of a rotation do not show the key-encryption key to a custodian', async () => {
  const custodian = await traced('custodian');
  expect(await custodian.state('select masking.rotate()')).toBe('none');
  expect(stage.leaks(custodian)).toEqual([]);
});

test.each([
  ['cipher', 'ip'],
  ['cipher', 'body'],
  ['token', 'device_id'],
])('the plans of the rotation of the %s key of %s do not show a key to a worker', async (purpose, field) => {
  await stage.db.pool('custodian').query('select masking.rotate($1, $2)', [purpose, field]);
  await guard(stage, people);
  const worker = await traced('worker');
  await worker.run('select masking.rotate_step()');
  await worker.run('select masking.rotate_step()');
  expect(stage.leaks(worker)).toEqual([]);
});

test('the plans of masking a message that raises an error do not show a key to a worker', async () => {
  await stage.db.superuser.query(
    `create function public.refuse() returns trigger language plpgsql as $$
     begin if new.user_id = 'unlucky' then raise exception using errcode = '22000'; end if; return new; end $$;
     create trigger refuse before insert on public.user_logins_default for each row execute function public.refuse()`,
  );
  const worker = await traced('worker');
  // One message is quarantined after a trial with a valid event. Two messages are refused.
  for (const [messages, state] of [
    [1, 'none'],
    [2, 'ML015'],
  ] as const) {
    const unlucky = Array.from({ length: messages }, () => message(event({ user_id: 'unlucky' })));
    const batch = await stageBatch(stage.db, unlucky);
    expect(await worker.state('select receipt_handle from masking.mask_batch($1)', [batch])).toBe(state);
  }
  expect(stage.leaks(worker)).toEqual([]);
});

test('the plans of masking ordinary messages do not show a key to a worker', async () => {
  const batch = await stageBatch(stage.db, [message(event()), message('no JSON')]);
  const worker = await traced('worker');
  expect(await worker.state('select receipt_handle from masking.mask_batch($1)', [batch])).toBe('none');
  expect(worker.notices.length).toBeGreaterThan(5);
  expect(stage.leaks(worker)).toEqual([]);
});
