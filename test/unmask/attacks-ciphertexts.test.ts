/**
 * Changes to the vault (by a superuser, from a restored file) make reveals fail. They never show a wrong
 * value.
 */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { sqlstate } from '../support/sqlstate.ts';
import {
  canary,
  guard,
  loadPeople,
  quarantine,
  request,
  revealed,
  REVEAL,
  setStage,
} from '../support/unmask.ts';
import type { Person, Session, Stage } from '../support/unmask.ts';

const SWAP = `update masking.vault v set ciphertext = w.ciphertext, key_version = w.key_version
  from masking.vault w where (v.token = $1 and w.token = $2) or (v.token = $2 and w.token = $1)`;

let stage: Stage;
let people: Person[];
let unmasker: Session;
beforeAll(async () => {
  stage = await setStage();
  people = await loadPeople(stage.db, 3);
  await guard(stage, people);
  await stage.db.superuser.query('create table public.kept as select * from masking.vault');
});
beforeEach(async () => {
  unmasker = await stage.join(canary('u').replace('-', '_').slice(0, 20), 'logins_unmasker');
});
afterEach(async () => {
  stage.refuteLeaks(unmasker);
  await stage.db.superuser.query(
    'truncate masking.vault; insert into masking.vault select * from public.kept',
  );
});
afterAll(() => stage.drop());

/** Requests values of the first two people, changes the vault, and returns the SQLSTATEs of the reveals. */
async function afterTampering(statement: string, values: unknown[]): Promise<string[]> {
  const ids = [
    await request(unmasker, 'ip', [people[0]!.ipToken]),
    await request(unmasker, 'device_id', [people[0]!.deviceToken]),
    await request(unmasker, 'ip', [people[0]!.ipToken, people[1]!.ipToken]),
  ];
  const { rowCount } = await stage.db.superuser.query(statement, values);
  expect(rowCount).toBeGreaterThan(0);
  return Promise.all(ids.map((id) => stage.again(unmasker).then((session) => session.state(REVEAL, [id]))));
}

test('a reveal fails if ciphertexts of the same field are swapped', async () => {
  const states = await afterTampering(SWAP, [people[0]!.ipToken, people[1]!.ipToken]);
  expect(states[0]).toBe('ML004');
  expect(states[2]).toBe('ML004');
});

test('a reveal fails if ciphertexts of two fields are swapped, also with their key versions', async () => {
  const tokens = [people[0]!.ipToken, people[0]!.deviceToken];
  expect(await afterTampering(SWAP, tokens)).toEqual(['ML004', 'ML004', 'ML004']);
  const only = SWAP.replace(', key_version = w.key_version', '');
  expect(await afterTampering(only, tokens)).toEqual(['ML004', 'ML004', 'ML004']);
});

test('a reveal fails if a ciphertext is overwritten with the ciphertext of another value', async () => {
  const copy = `update masking.vault v set ciphertext = w.ciphertext from masking.vault w where v.token = $1 and w.token = $2`;
  expect((await afterTampering(copy, [people[0]!.ipToken, people[2]!.ipToken]))[0]).toBe('ML004');
});

test('a reveal fails if an entry is stored under another token', async () => {
  const rename = `with gone as (delete from masking.vault where token = $1)
    update masking.vault set token = $1 where token = $2`;
  await stage.db.superuser.query('delete from masking.vault where token = $1', [people[1]!.ipToken]);
  const id = await request(unmasker, 'ip', [people[1]!.ipToken, people[0]!.ipToken]);
  await stage.db.superuser.query(rename.replace(/with[^)]*\)\s*/, ''), [
    people[1]!.ipToken,
    people[2]!.ipToken,
  ]);
  expect(await unmasker.state(REVEAL, [id])).toBe('ML004');
});

test.each([
  ['empty', `''::bytea`],
  ['cut to one byte', 'substr(ciphertext, 1, 1)'],
  ['one byte too short', 'substr(ciphertext, 1, octet_length(ciphertext) - 1)'],
  ['cut in half', 'substr(ciphertext, 1, octet_length(ciphertext) / 2)'],
  ['one byte too long', `ciphertext || '\\x00'::bytea`],
  ['all zeros', `decode(repeat('00', 150), 'hex')`],
  [
    'under the key of another field',
    'ciphertext, key_version = (select version from masking.keys where purpose = $$cipher$$ and field = $$device_id$$ and $1::uuid is not null)',
  ],
  [
    'under the key of bodies',
    'ciphertext, key_version = (select version from masking.keys where purpose = $$cipher$$ and field = $$body$$)',
  ],
])('a reveal fails if a ciphertext is %s', async (_, expression) => {
  const states = await afterTampering(
    `update masking.vault set ciphertext = ${expression} where token = $1`,
    [people[0]!.ipToken],
  );
  expect([states[0], states[1], states[2]]).toEqual(['ML004', 'none', 'ML004']);
});

test('a reveal fails if the value is encrypted under another key', async () => {
  const reencrypt = `update masking.vault v set ciphertext = crypto.pgp_sym_encrypt_bytea(
      masking.padded((select o.value from masking.decrypt_values(array[v.token]) o)),
      encode(crypto.gen_random_bytes(32), 'hex'), masking.cipher_options()) where token = $1`;
  expect((await afterTampering(reencrypt, [people[0]!.ipToken]))[0]).toBe('ML004');
});

test('a reveal fails if the key version does not exist', async () => {
  const id = await request(unmasker, 'ip', [people[0]!.ipToken]);
  await stage.db.superuser.query('update masking.vault set key_version = 99 where token = $1', [
    people[0]!.ipToken,
  ]);
  expect(await unmasker.state(REVEAL, [id])).not.toBe('none');
});

test('a flipped bit anywhere in a ciphertext never shows a wrong value', async () => {
  const token = people[0]!.ipToken;
  const { rows } = await stage.db.superuser.query<{ n: number }>(
    'select octet_length(ciphertext)::int as n from masking.vault where token = $1',
    [token],
  );
  const outcomes: string[] = [];
  const client = await stage.db.superuser.connect();
  try {
    for (let n = 0; n < rows[0]!.n; n += 1) {
      await client.query('begin');
      await client.query(
        'update masking.vault set ciphertext = set_byte(ciphertext, $2, get_byte(ciphertext, $2) # $3) where token = $1',
        [token, n, 1 << (n % 8)],
      );
      const decrypted = client.query<{ value: string }>(
        'select value from masking.decrypt_values(array[$1::uuid])',
        [token],
      );
      const state = await sqlstate(decrypted);
      outcomes.push(state === 'none' ? (await decrypted).rows.map(({ value }) => value).join() : state);
      await client.query('rollback');
    }
  } finally {
    client.release();
  }
  // A few bits in the OpenPGP headers have no meaning. If one of them is flipped, the value is still right.
  const others = outcomes.filter((outcome) => outcome !== 'ML004');
  expect(new Set([...others, people[0]!.ip])).toEqual(new Set([people[0]!.ip]));
  expect(others.length).toBeLessThan(5);

  const id = await request(unmasker, 'ip', [token]);
  for (const n of [0, 1, 10, 40, rows[0]!.n - 1]) {
    await stage.db.superuser.query(
      'update masking.vault set ciphertext = set_byte(ciphertext, $2, get_byte(ciphertext, $2) # 255) where token = $1',
      [token, n],
    );
    expect(await unmasker.state(REVEAL, [id])).toBe('ML004');
    await stage.db.superuser.query(
      'truncate masking.vault; insert into masking.vault select * from public.kept',
    );
  }
});

test('a reveal of a body fails if the body was changed, but not if it was replaced', async () => {
  const texts = [`no JSON ${canary('body')}`, `no JSON ${canary('body')}`];
  const [first, second] = (await quarantine(stage.db, texts)) as [string, string];
  const id = await unmasker.value(`select unmask.request_quarantined($1, 'INC-1')`, [[first]]);
  await stage.db.superuser.query(
    'update staging.quarantine set body = set_byte(body, 60, get_byte(body, 60) # 1) where message_id = $1',
    [first],
  );
  expect(await unmasker.state(REVEAL, [id])).toBe('ML004');
  await stage.db.superuser.query(
    'update staging.quarantine q set body = p.body from staging.quarantine p where q.message_id = $1 and p.message_id = $2',
    [first, second],
  );
  // A body has no token to compare with, so the reveal shows the other body.
  expect(Object.keys(await revealed(await stage.again(unmasker), id))).toEqual([first]);
});

test('a reveal fails if a value is replaced by the ciphertext of an empty body', async () => {
  const [empty] = await quarantine(stage.db, ['']);
  const states = await afterTampering(
    `update masking.vault v set ciphertext = q.body, key_version = q.key_version
       from staging.quarantine q where v.token = $1 and q.message_id = $2`,
    [people[0]!.ipToken, empty],
  );
  expect(states[0]).toBe('ML004');
});
