import { expect, test } from 'vitest';
import { type TestDatabase } from '../support/database.ts';
import {
  distinct,
  expectAllReveal,
  expectDuplicatesExact,
  load,
  loadBeforeEach,
  maskedLogins,
  request,
  reveal,
  revealAll,
  rotate,
  sharedLogins,
  step,
  tokensByValue,
  type Login,
} from '../support/keys.ts';
import { sqlstate } from '../support/sqlstate.ts';

/** Rows a step: so few that steps end within every phase. */
const ROWS = 4;

let db: TestDatabase;
let sent: Map<string, Login>;
loadBeforeEach(sharedLogins(40), (loaded) => ({ db, sent } = loaded));

/** Runs all steps. Calls `check` before the first step and after each step. */
async function atEveryStep(check: (n: number) => Promise<void>): Promise<number> {
  await check(0);
  for (let n = 1; ; n += 1) {
    const more = await step(db, ROWS);
    await check(n);
    if (!more) return n;
    if (n > 300) throw new Error('the rotation does not end');
  }
}

const requestFind = (field: string, value: string) =>
  db.pool('unmasker').query(`select unmask.request_find($1, $2, reason => 'a test')`, [field, value]);
const find = async (field: string, value: string): Promise<string[]> => {
  const { rows } = await db
    .pool('unmasker')
    .query<{ token: string }>('select unmask.find($1, $2) as token', [field, value]);
  return rows.map(({ token }) => token);
};
const valuesOf = (field: 'ip' | 'device') => distinct([...sent.values()].map((login) => login[field]));

test('at every step, with new logins coming in, every token reveals the value that was sent', async () => {
  await rotate(db);
  const steps = await atEveryStep(async (n) => {
    if (n % 5 === 0) {
      const more = await load(db, [
        { user: 'old', ip: '10.0.0.1', device: 'device-1' },
        { user: 'new', ip: `10.1.0.${n}`, device: `device-new-${n}` },
      ]);
      for (const [id, login] of more) sent.set(id, login);
    }
    await expectAllReveal(db, sent);
  });
  expect(steps).toBeGreaterThan(40);
  await expectDuplicatesExact(db, sent);
  const { rows } = await db.superuser.query(
    'select distinct key_version as version from masking.vault order by 1',
  );
  expect(rows.map(({ version }) => version)).toEqual([4, 5]);
});

test('at every step, an earlier request and earlier tokens reveal the same values', async () => {
  const old = distinct((await maskedLogins(db)).map(({ device }) => device));
  const [earlier, values] = [await request(db, 'device_id', old), await revealAll(db, 'device_id', old)];
  await rotate(db);
  await atEveryStep(async () => {
    for (const shown of [await reveal(db, earlier), await revealAll(db, 'device_id', old)]) {
      for (const token of old) expect(shown.get(token)).toBe(values.get(token));
    }
  });
});

test('at every step, a request for a user reveals all their values', async () => {
  const wanted = [...sent.values()].filter(({ user }) => user === 'user-3');
  const values = distinct(wanted.flatMap(({ ip, device }) => [ip, device])).sort();
  await rotate(db, 'token');
  await atEveryStep(async () => {
    const { rows } = await db
      .pool('unmasker')
      .query<{ id: string }>(`select unmask.request_user('user-3', reason => 'a test') as id`);
    expect(distinct((await reveal(db, rows[0]!.id)).values()).sort()).toEqual(values);
  });
});

test('at every step, find returns the tokens that a value has, and never more than two', async () => {
  for (const value of valuesOf('ip')) await requestFind('ip', value);
  await rotate(db, 'token', 'ip');
  let doubled = 0;
  await atEveryStep(async () => {
    const tokens = await tokensByValue(db, sent, 'ip');
    for (const value of valuesOf('ip')) expect(new Set(await find('ip', value))).toEqual(tokens.get(value));
    for (const each of tokens.values()) {
      expect(each.size).toBeLessThanOrEqual(2);
      doubled += each.size - 1;
    }
  });
  // If no value ever had two tokens, the test would prove nothing.
  expect(doubled).toBeGreaterThan(0);
  for (const value of valuesOf('ip')) expect(await find('ip', value)).toHaveLength(1);
});

test('at every step, find returns nothing for a value that no login has', async () => {
  await requestFind('device_id', 'nobody has it');
  await rotate(db, 'token', 'device_id');
  await atEveryStep(async () => expect(await find('device_id', 'nobody has it')).toEqual([]));
});

test('at every step, tokens of different values and of different fields differ', async () => {
  await rotate(db, 'token');
  await atEveryStep(async () => {
    const fields = [await tokensByValue(db, sent, 'ip'), await tokensByValue(db, sent, 'device')];
    const tokens = fields.flatMap((byValue) => [...byValue.values()].flatMap((each) => [...each]));
    expect(new Set(tokens).size).toBe(tokens.length);
  });
});

test('a rotation of cipher keys changes nothing that an analyst sees', async () => {
  const before = new Map((await maskedLogins(db)).map((login) => [login.id, login]));
  await rotate(db, 'cipher');
  await atEveryStep(async () => {
    expect(new Map((await maskedLogins(db)).map((login) => [login.id, login]))).toEqual(before);
  });
});

test('a request for tokens of the other field is refused while both fields have two keys', async () => {
  const devices = distinct((await maskedLogins(db)).map(({ device }) => device));
  await rotate(db, 'token');
  await atEveryStep(async () => expect(await sqlstate(request(db, 'ip', devices))).toBe('ML110'));
});
