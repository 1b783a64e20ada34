import { isIP } from 'node:net';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { event, maskAll, message } from '../support/staging.ts';
import { isNearlyAddress, meaningOf, notations } from './addresses.ts';

/** TEST_BODIES asks for more of them: it is the number of batches, of twenty addresses in a hundred notations each. */
const RUNS = Number(process.env['TEST_BODIES'] ?? 25);

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

const same = (...texts: string[]): boolean => new Set(texts.map(meaningOf)).size === 1;

/** The tokens of addresses as they are written, in one batch. */
async function tokensOf(ips: readonly string[]): Promise<string[]> {
  const messages = ips.map((ip) => message(event({ ip, device_id: null })));
  await maskAll(db, messages);
  const { rows } = await db.superuser.query<{ id: string; token: string }>(
    'select message_id as id, masked_ip as token from public.user_logins where message_id = any ($1)',
    [messages.map(({ id }) => id)],
  );
  const tokens = new Map(rows.map(({ id, token }) => [id, token]));
  return messages.map(({ id }) => tokens.get(id) ?? 'not loaded');
}

test(
  'two spellings have one token where they are one address, and two where they are two or none',
  { timeout: 60_000 + RUNS * 5_000 },
  async () => {
    const tokenOf = new Map<string, string>();
    const meanings = new Map<string, string>();
    const kinds = [0, 0, 0, 0, 0, 0, 0];
    await fc.assert(
      fc.asyncProperty(fc.array(notations, { minLength: 1, maxLength: 20, size: 'max' }), async (addresses) => {
        const ips = [...new Set(addresses.flat())].filter((ip) => !isNearlyAddress(ip));
        const tokens = await tokensOf(ips);
        const wrong = ips.filter((ip, index) => {
          kinds[isIP(ip)]! += 1;
          const [token, meaning] = [tokens[index]!, meaningOf(ip)];
          if (!tokenOf.has(meaning)) tokenOf.set(meaning, token);
          if (!meanings.has(token)) meanings.set(token, meaning);
          return tokenOf.get(meaning) !== token || meanings.get(token) !== meaning;
        });
        expect(wrong).toEqual([]);
      }),
      { numRuns: RUNS },
    );
    expect(kinds[0]).toBeGreaterThan(RUNS * 20);
    expect(kinds[4]).toBeGreaterThan(RUNS);
    expect(kinds[6]).toBeGreaterThan(RUNS * 5);
  },
); // prettier-ignore

test('what is nearly an address, and Postgres does not take either, stands as it is', async () => {
  const ips = ['1.2.3', '1.2.3.4.5', '256.1.1.1', '1.2.3.4..', '1..3.4', '::ffff:1.2.3.4.5', '::ffff:256.1.1.1', '::ffff:010.1.2.3', '::1.2.3.4:5', '1.2.3.'];
  const tokens = await tokensOf([...ips, '1.2.3.4', '1.2.3.0', '::1.2.3.4', '1.0.3.4']);
  expect(new Set(tokens).size).toBe(tokens.length);
}); // prettier-ignore

// Reported: inet takes more than inet_pton does. 010.1.2.3 is 8.1.2.3 to some senders and 10.1.2.3 to Postgres, and
// ::ffff:1.2.3 becomes 1.2.3.0: different values with one token, and reveal shows what nobody sent.
test.each([
  ['010.1.2.3', '10.1.2.3'],
  ['001.002.003.004', '1.2.3.4'],
  ['1.2.3.4.', '1.2.3.4'],
  ['::ffff:1.2.3', '1.2.3.0'],
  ['::1.2', '::1.2.0.0'],
])('%s is no address and has a token other than %s', async (nearly, address) => {
  const [first, second] = await tokensOf([nearly, address]);
  expect(first).not.toBe(second);
});

test('the oracle itself knows what is what', () => {
  expect(same('10.1.2.3', '::ffff:10.1.2.3', '::FFFF:A01:203', '0:0:0:0:0:ffff:0a01:0203')).toBe(true);
  expect(same('::', '0::0', '0:0:0:0:0:0:0:0', '::0.0.0.0')).toBe(true);
  expect(same('1:2:3:4:5:6:7::', '1:2:3:4:5:6:7:0')).toBe(true);
  expect(same('10.1.2.3', '::10.1.2.3')).toBe(false);
  expect(same('fe80::1', 'fe80::1%eth0')).toBe(false);
  expect(same('10.1.2.3', '10.1.2.3/32')).toBe(false);
});
