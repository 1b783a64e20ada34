import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { event, loginOf, maskAll, message } from '../support/staging.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

interface Entry {
  token: string;
  length: number;
  plaintext: Buffer;
}

/** The vault's entries of tokens, decrypted as a superuser can. */
async function entriesOf(tokens: unknown[]): Promise<Entry[]> {
  const { rows } = await db.superuser.query<Entry>(
    `select v.token, octet_length(v.ciphertext) as length,
            crypto.pgp_sym_decrypt_bytea(v.ciphertext, encode(masking.unwrapped(k.wrapped), 'hex')) as plaintext
       from masking.vault v
       join masking.keys k on k.purpose = 'cipher' and k.version = v.key_version
      where v.token = any ($1)`,
    [tokens],
  );
  return rows;
}

/** Pads a value by ISO/IEC 7816-4: 0x80, then zeros. */
function padded(value: string): Buffer {
  const bytes = Buffer.from(value);
  const block = Buffer.alloc(bytes.length < 64 ? 64 : 320);
  bytes.copy(block);
  block[bytes.length] = 0x80;
  return block;
}

async function lengthsOf(tokens: string[]): Promise<Set<number>> {
  return new Set((await entriesOf(tokens)).map(({ length }) => length));
}

/** Two messages with the same address, in two notations, and the same device. */
function twins() {
  return [
    message(event({ ip: '192.0.2.200', device_id: 'twin' })),
    message(event({ ip: '::ffff:192.0.2.200', device_id: 'twin' })),
  ];
}

async function maskDevices(values: string[]): Promise<Map<string, string>> {
  const messages = values.map((value) => message(event({ ip: null, device_id: value })));
  await maskAll(db, messages);
  const rows = await Promise.all(messages.map(({ id }) => loginOf(db, id)));
  return new Map(rows.map((row, index) => [row['masked_device_id'] as string, values[index]!]));
}

test('a ciphertext decrypts to the padded value', async () => {
  const values = [
    'd',
    'é'.repeat(31),
    'x'.repeat(63),
    'x'.repeat(64),
    '😀'.repeat(64),
    'x'.repeat(256),
    'x\u0080',
  ];
  const tokens = await maskDevices(values);
  const entries = await entriesOf([...tokens.keys()]);
  expect(entries).toHaveLength(values.length);
  for (const { token, plaintext } of entries) expect(plaintext).toEqual(padded(tokens.get(token)!));
});

test('the vault contains an address in its canonical form', async () => {
  const login = message(event({ ip: '::FFFF:198.51.100.9', device_id: null }));
  await maskAll(db, [login]);
  const entries = await entriesOf([(await loginOf(db, login.id))['masked_ip']]);
  expect(entries.map(({ plaintext }) => plaintext)).toEqual([padded('198.51.100.9')]);
});

test('the length of a ciphertext reveals only whether the value is short or long', async () => {
  const short = [...(await maskDevices(['1', '22', randomUUID(), 's'.repeat(63)])).keys()];
  const long = [...(await maskDevices(['l'.repeat(64), 'l'.repeat(100), 'l'.repeat(256)])).keys()];
  const ip = message(event({ ip: '9.9.9.9', device_id: null }));
  await maskAll(db, [ip]);
  short.push((await loginOf(db, ip.id))['masked_ip'] as string);
  expect((await lengthsOf(short)).size).toBe(1);
  expect((await lengthsOf(long)).size).toBe(1);
  expect((await lengthsOf([...short, ...long])).size).toBe(2);
});

test('the vault has one entry for each distinct value, encrypted once', async () => {
  const count = async () => {
    const { rows } = await db.superuser.query<{ count: number }>(
      'select count(*)::int as count from masking.vault',
    );
    return rows[0]!.count;
  };
  const before = await count();
  await maskAll(db, twins());
  expect(await count()).toBe(before + 2);

  const all = 'select md5(string_agg(v::text, $1 order by v.token)) as digest from masking.vault v';
  const { rows: digest } = await db.superuser.query(all, [',']);
  await maskAll(db, twins());
  expect((await db.superuser.query(all, [','])).rows).toEqual(digest);
});

test('two encryptions of the same body differ', async () => {
  const bodies = [message('same body'), message('same body')];
  await maskAll(db, bodies);
  const { rows } = await db.superuser.query(
    'select count(distinct body)::int as distinct from staging.quarantine where message_id = any ($1)',
    [bodies.map(({ id }) => id)],
  );
  expect(rows).toEqual([{ distinct: 2 }]);
});

test('a changed ciphertext does not decrypt', async () => {
  const [token] = (await maskDevices(['tampered'])).keys();
  await db.superuser.query(
    `update masking.vault set ciphertext = set_byte(ciphertext, 60, get_byte(ciphertext, 60) # 1) where token = $1`,
    [token],
  );
  await expect(entriesOf([token])).rejects.toMatchObject({ code: '39000' });
});
