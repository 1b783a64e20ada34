import { afterAll, beforeAll, expect, test } from 'vitest';
import { unseal } from '../../src/database/kek.ts';
import { markLog } from '../support/server-log.ts';
import { loginOf, maskAll, message } from '../support/staging.ts';
import { canary, quarantine, request, revealed, REVEAL, setStage } from '../support/unmask.ts';
import type { Session, Stage } from '../support/unmask.ts';

const REQUEST_FIND = `select unmask.request_find($1, $2, reason => 'INC-1')`;
const FIND = 'select unmask.find($1, $2) as token';
const REQUEST_QUARANTINED = 'select unmask.request_quarantined($1, $2)';

let stage: Stage;
let unmasker: Session;
let other: Session;
beforeAll(async () => {
  stage = await setStage();
  unmasker = await stage.join('unmasker', 'logins_unmasker');
  other = await stage.join('other', 'logins_unmasker');
});
afterAll(() => stage.drop());

/** Masks one login. Returns its tokens. */
async function login(ip: string | null, device: string | null): Promise<{ ip: string; device: string }> {
  const one = message(JSON.stringify({ user_id: 'somebody', ip, device_id: device }));
  await maskAll(stage.db, [one]);
  const row = await loginOf(stage.db, one.id);
  return { ip: row['masked_ip'] as string, device: row['masked_device_id'] as string };
}

const found = async (session: Session, field: string, value: string) => {
  const { state, rows } = await session.run(FIND, [field, value]);
  return state === 'none' ? rows.map(({ token }) => token) : state;
};

test('find returns the token of a requested value, and only for its own field', async () => {
  const tokens = await login('198.51.100.1', 'device-to-find');
  await unmasker.run(REQUEST_FIND, ['ip', '198.51.100.1']);
  await unmasker.run(REQUEST_FIND, ['device_id', 'device-to-find']);
  await unmasker.run(REQUEST_FIND, ['ip', 'device-to-find']);
  expect(await found(unmasker, 'ip', '198.51.100.1')).toEqual([tokens.ip]);
  expect(await found(unmasker, 'device_id', 'device-to-find')).toEqual([tokens.device]);
  expect(await found(unmasker, 'ip', 'device-to-find')).toEqual([]);
});

test('find returns nothing for a value that no login has', async () => {
  await unmasker.run(REQUEST_FIND, ['ip', '198.51.100.250']);
  expect(await found(unmasker, 'ip', '198.51.100.250')).toEqual([]);
});

test.each([
  ['198.51.100.2', '::ffff:198.51.100.2'],
  ['::FFFF:198.51.100.3', '198.51.100.3'],
  ['2001:DB8:0:0::1', '2001:db8::1'],
  ['no address', 'no address'],
  ['198.51.100.0/24', '198.51.100.0/24'],
  ['999.1.1.1', '999.1.1.1'],
])('find returns the token of the address %s in the notation %s', async (sent, asked) => {
  const { ip } = await login(sent, null);
  await unmasker.run(REQUEST_FIND, ['ip', asked]);
  expect(await found(unmasker, 'ip', asked)).toEqual([ip]);
  // The request covers the value in every notation.
  expect(await found(unmasker, 'ip', sent)).toEqual([ip]);
});

test('find does not normalise a device id', async () => {
  await login(null, 'AbC');
  await unmasker.run(REQUEST_FIND, ['device_id', 'abc']);
  expect(await found(unmasker, 'device_id', 'abc')).toEqual([]);
});

test('constants in a statement that are not addresses raise no error', async () => {
  for (const value of ['no address', '1.2.3', '::1::', '1.2.3.4/33', '']) {
    const literal = `'${value}'`;
    const asked = await unmasker.state(`select unmask.request_find('ip', ${literal}, 'INC-1')`);
    expect({ value, asked }).toEqual({ value, asked: value === '' ? 'ML110' : 'none' });
    const answer = await unmasker.state(`select unmask.find('ip', ${literal})`);
    expect({ value, answer }).toEqual({ value, answer: value === '' ? 'ML101' : 'none' });
  }
});

test('find is refused before its request is committed and after it is rolled back', async () => {
  await login('198.51.100.4', null);
  await unmasker.run('begin');
  expect(await unmasker.state(REQUEST_FIND, ['ip', '198.51.100.4'])).toBe('none');
  expect(await found(unmasker, 'ip', '198.51.100.4')).toBe('ML103');
  expect(await found(other, 'ip', '198.51.100.4')).toBe('ML101');
  await unmasker.run('rollback');
  expect(await found(unmasker, 'ip', '198.51.100.4')).toBe('ML101');
});

test('find refuses a value that the login has not requested, whether it exists or not (ML101)', async () => {
  await login('198.51.100.5', null);
  await other.run(REQUEST_FIND, ['ip', '198.51.100.5']);
  for (const value of ['198.51.100.5', '198.51.100.251'])
    expect(await found(unmasker, 'ip', value)).toBe('ML101');
});

test.each([
  [null, 'x', 'INC'],
  ['user_id', 'x', 'INC'],
  ['ip', null, 'INC'],
  ['ip', '', 'INC'],
  ['ip', '198.51.100.6', ''],
])('request_find refuses field %j, value %j, reason %j (ML110)', async (field, value, reason) => {
  expect(await unmasker.state('select unmask.request_find($1, $2, $3)', [field, value, reason])).toBe(
    'ML110',
  );
});

test('a request to find does not allow a reveal, and a request to reveal does not allow find', async () => {
  const { ip } = await login('198.51.100.7', null);
  const id = await unmasker.value(REQUEST_FIND, ['ip', '198.51.100.7']);
  const { state, hint } = await unmasker.run(REVEAL, [id]);
  expect({ state, hint: typeof hint }).toEqual({ state: 'ML110', hint: 'string' });
  await request(other, 'ip', [ip]);
  expect(await found(other, 'ip', '198.51.100.7')).toBe('ML101');
});

test('the audit log shows the request of a find, but not the value', async () => {
  const device = canary('searched');
  await login(null, device);
  const id = await unmasker.value(REQUEST_FIND, ['device_id', device]);
  await found(unmasker, 'device_id', device);
  const { rows } = await stage.db.superuser.query(
    `select action, details ->> 'tokens' as tokens from audit.events
      where details ->> 'request_id' = $1 order by event_id`,
    [id],
  );
  expect(rows).toEqual([
    { action: 'request', tokens: null },
    { action: 'find', tokens: '1' },
  ]);
  const all = `select (select string_agg(e::text, '') from audit.events e) || (select string_agg(r::text, '') from unmask.requests r)`;
  expect(await (await stage.superuser()).value(all)).not.toContain(device);
});

test('quarantined bodies are revealed unchanged, and in hexadecimal if they are not text', async () => {
  const text = `{"user_id":null,"x":"${canary('é')}"}`;
  const bytes = Buffer.from('ff00fe', 'hex');
  const ids = await quarantine(stage.db, [text, bytes]);
  const id = await unmasker.value(REQUEST_QUARANTINED, [ids, 'INC-1']);
  expect(await revealed(unmasker, id)).toEqual({ [ids[0]!]: text, [ids[1]!]: '\\xff00fe' });
});

test('a reveal shows only bodies that are still in quarantine, and fails if none is (ML107)', async () => {
  const [gone, kept] = (await quarantine(stage.db, ['gone', 'kept'])) as [string, string];
  const both = await unmasker.value(REQUEST_QUARANTINED, [[gone, kept], 'INC-1']);
  const one = await unmasker.value(REQUEST_QUARANTINED, [[gone], 'INC-1']);
  await stage.db.superuser.query('delete from staging.quarantine where message_id = $1', [gone]);
  expect(await revealed(unmasker, both)).toEqual({ [kept]: 'kept' });
  expect(await unmasker.state(REVEAL, [one])).toBe('ML107');
  expect(await unmasker.state(REQUEST_QUARANTINED, [[gone], 'INC-1'])).toBe('ML107');
});

test.each([
  ['null instead of ids', null, 'INC'],
  ['no ids', [], 'INC'],
  ['an empty reason', 'IDS', ''],
])('a request for bodies with %s is refused (ML110)', async (_, ids, reason) => {
  const given = ids === 'IDS' ? await quarantine(stage.db, ['x']) : ids;
  expect(await unmasker.state(REQUEST_QUARANTINED, [given, reason])).toBe('ML110');
});

test('a sealed database refuses reveal, find and request_find with ML001 and a hint', async () => {
  const { ip } = await login('198.51.100.8', null);
  const [body] = await quarantine(stage.db, ['sealed']);
  const value = await request(unmasker, 'ip', [ip]);
  const quarantined = await unmasker.value(REQUEST_QUARANTINED, [[body], 'INC-1']);
  await unmasker.run(REQUEST_FIND, ['ip', '198.51.100.8']);
  await stage.db.pool('custodian').query('select masking.seal()');
  const answers = [
    await unmasker.run(REVEAL, [value]),
    await unmasker.run(REVEAL, [quarantined]),
    await unmasker.run(FIND, ['ip', '198.51.100.8']),
    await unmasker.run(REQUEST_FIND, ['ip', '198.51.100.8']),
  ];
  expect(answers.map(({ state, hint }) => `${state} ${typeof hint}`)).toEqual(Array(4).fill('ML001 string'));
  // A request for tokens needs no key.
  await request(unmasker, 'ip', [ip]);
  await unseal(stage.db.pool('worker'), stage.db.kek);
  expect(await revealed(unmasker, value)).toEqual({ [ip]: '198.51.100.8' });
});

test('each reveal writes one line with its request, but without the value, to the server log', async () => {
  const { device } = await login(null, canary('logged'));
  const id = await request(unmasker, 'device_id', [device]);
  const log = markLog();
  const values = await revealed(unmasker, id);
  await unmasker.run('begin');
  await revealed(unmasker, id);
  await unmasker.run('rollback');
  const lines = log
    .since()
    .toString()
    .split('\n')
    .filter((line) => line.includes('masked-logins:') && line.includes(id) && line.includes(unmasker.login));
  expect(lines).toHaveLength(2);
  expect(log.since().toString()).not.toContain(values[device]);
});
