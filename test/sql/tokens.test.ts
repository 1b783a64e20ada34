import { createHmac, randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { unseal } from '../../src/database/kek.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { dataKey, event, loginOf, maskAll, message } from '../support/staging.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

/** Masks values in one batch. Returns their tokens in the same order. */
async function tokensOf(field: 'ip' | 'device_id', values: unknown[]): Promise<unknown[]> {
  const messages = values.map((value) => message(event({ [field]: value })));
  await maskAll(db, messages);
  const rows = await Promise.all(messages.map(({ id }) => loginOf(db, id)));
  return rows.map((row) => row[`masked_${field}`]);
}

/** Computes a token without Postgres: HMAC-SHA256 cut to a UUIDv8 whose first byte is the key's version. */
function expectedToken(value: string, key: Buffer, version: number): string {
  const bytes = createHmac('sha256', key).update(value).digest().subarray(0, 16);
  bytes[0] = version;
  bytes[6] = (bytes[6]! & 0x0f) | 0x80;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  return bytes.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

describe('tokens of addresses', () => {
  test.each([
    [
      'an IPv4 address as IPv6',
      '1.2.3.4',
      ['::ffff:1.2.3.4', '::FFFF:1.2.3.4', '::ffff:102:304', '0:0:0:0:0:ffff:1.2.3.4'],
    ],
    ['the lowest IPv4 address as IPv6', '0.0.0.0', ['::ffff:0.0.0.0', '::ffff:0:0', '0:0:0:0:0:ffff::']],
    ['the highest IPv4 address as IPv6', '255.255.255.255', ['::ffff:255.255.255.255', '::ffff:ffff:ffff']],
    [
      'an IPv6 address in capitals and with zeros',
      '2001:db8::1',
      ['2001:DB8::1', '2001:db8:0::1', '2001:0db8:0:0:0:0:0:1'],
    ],
    ['the IPv6 loopback address', '::1', ['0:0:0:0:0:0:0:1', '0::1']],
  ])('are equal in all notations: %s', async (_, canonical, notations) => {
    const tokens = await tokensOf('ip', [canonical, ...notations]);
    expect(new Set(tokens).size).toBe(1);
  });

  test('differ if the addresses differ', async () => {
    const ipv4 = [
      '1.2.3.4',
      '1.2.3.40',
      '1.2.3.0',
      '1.2.3.0/24',
      '1.2.3.4/32',
      '1.2.3.4/24',
      ' 1.2.3.4',
      '1.2.3.4 ',
    ];
    const ipv6 = ['::1.2.3.4', '::ffff:1.2.3.4/128', '2001:db8::1', '2001:db8::1/64', '2001:db8::1%eth0'];
    const values = [...ipv4, ...ipv6, 'no address', 'No address', 'é', 'e\u0301'];
    expect(new Set(await tokensOf('ip', values)).size).toBe(values.length);
  });
});

test('a token is a UUIDv8 of the key version and the HMAC-SHA256 of the canonical value', async () => {
  const ipKey = await dataKey(db, 'token', 'ip');
  const deviceKey = await dataKey(db, 'token', 'device_id');
  const { rows } = await db.superuser.query<{ field: 'ip' | 'device_id'; version: number }>(
    `select field, version from masking.keys where purpose = 'token'`,
  );
  const versions = Object.fromEntries(rows.map(({ field, version }) => [field, version]));
  expect(versions['ip']).not.toBe(versions['device_id']);

  const values = ['198.51.100.7', 'no address', 'ÿ😀', '1.2.3.0/24', 'x'.repeat(256)];
  expect(await tokensOf('ip', values)).toEqual(values.map((v) => expectedToken(v, ipKey, versions['ip']!)));
  expect(await tokensOf('device_id', values)).toEqual(
    values.map((v) => expectedToken(v, deviceKey, versions['device_id']!)),
  );
  expect(await tokensOf('ip', ['::FFFF:198.51.100.7'])).toEqual([
    expectedToken('198.51.100.7', ipKey, versions['ip']!),
  ]);
});

test('every token is a UUIDv8', async () => {
  const tokens = await tokensOf(
    'device_id',
    Array.from({ length: 200 }, () => randomUUID()),
  );
  expect(new Set(tokens).size).toBe(200);
  for (const token of tokens) {
    expect(token).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  }
});

test('an address and a device id with the same text have different tokens', async () => {
  const values = ['1.2.3.4', 'same', '::1', 'x'.repeat(256)];
  const tokens = [...(await tokensOf('ip', values)), ...(await tokensOf('device_id', values))];
  expect(new Set(tokens).size).toBe(2 * values.length);
});

test('an absent value, null and the empty string have no token', async () => {
  for (const field of ['ip', 'device_id'] as const) {
    expect(await tokensOf(field, [null, undefined, ''])).toEqual([null, null, null]);
  }
});

test('a device id is not normalised', async () => {
  const values = ['ABC', 'abc', ' abc', 'abc ', '::ffff:1.2.3.4', '1.2.3.4'];
  expect(new Set(await tokensOf('device_id', values)).size).toBe(values.length);
});

test('a value has the same token in every batch, also after sealing and unsealing', async () => {
  const values = ['192.0.2.1', 'a device'];
  const first = await tokensOf('ip', values);
  expect(await tokensOf('ip', values)).toEqual(first);
  await db.pool('custodian').query('select masking.seal()');
  await unseal(db.pool('worker'), db.kek);
  expect(await tokensOf('ip', values)).toEqual(first);
});

test('two databases give the same value different tokens', async () => {
  const other = await createTestDatabase();
  try {
    const there = message(event({ ip: '192.0.2.77' }));
    await maskAll(other, [there]);
    expect([(await loginOf(other, there.id))['masked_ip']]).not.toEqual(await tokensOf('ip', ['192.0.2.77']));
  } finally {
    await other.drop();
  }
});
