import { isIP } from 'node:net';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { event, maskAll, message } from '../support/staging.ts';
import { isAlmostAddress, canonicalForm, notations } from './addresses.ts';

/** Number of batches, each of up to twenty addresses in a hundred notations. TEST_BODIES overrides it. */
const RUNS = Number(process.env['TEST_BODIES'] ?? 25);

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

const areSameAddress = (...texts: string[]): boolean => new Set(texts.map(canonicalForm)).size === 1;

/** Masks addresses in one batch. Returns their tokens in the same order. */
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
  'two strings have the same token if and only if they are notations of the same address',
  { timeout: 60_000 + RUNS * 5_000 },
  async () => {
    const tokenOf = new Map<string, string>();
    const formOf = new Map<string, string>();
    const counts = [0, 0, 0, 0, 0, 0, 0];
    await fc.assert(
      fc.asyncProperty(fc.array(notations, { minLength: 1, maxLength: 20, size: 'max' }), async (addresses) => {
        const ips = [...new Set(addresses.flat())].filter((ip) => !isAlmostAddress(ip));
        const tokens = await tokensOf(ips);
        const wrong = ips.filter((ip, index) => {
          counts[isIP(ip)]! += 1;
          const [token, form] = [tokens[index]!, canonicalForm(ip)];
          if (!tokenOf.has(form)) tokenOf.set(form, token);
          if (!formOf.has(token)) formOf.set(token, form);
          return tokenOf.get(form) !== token || formOf.get(token) !== form;
        });
        expect(wrong).toEqual([]);
      }),
      { numRuns: RUNS },
    );
    expect(counts[0]).toBeGreaterThan(RUNS * 20);
    expect(counts[4]).toBeGreaterThan(RUNS);
    expect(counts[6]).toBeGreaterThan(RUNS * 5);
  },
); // prettier-ignore

test('strings that are almost addresses have tokens of their own', async () => {
  const ips = ['1.2.3', '1.2.3.4.5', '256.1.1.1', '1.2.3.4..', '1..3.4', '::ffff:1.2.3.4.5', '::ffff:256.1.1.1', '::ffff:010.1.2.3', '::1.2.3.4:5', '1.2.3.'];
  const tokens = await tokensOf([...ips, '1.2.3.4', '1.2.3.0', '::1.2.3.4', '1.0.3.4']);
  expect(new Set(tokens).size).toBe(tokens.length);
}); // prettier-ignore

// inet accepts more than inet_pton. 010.1.2.3 is 8.1.2.3 to some senders and 10.1.2.3 to Postgres, and
// ::ffff:1.2.3 becomes 1.2.3.0. Different values would have the same token, and a reveal would show a value
// that nobody sent.
test.each([
  ['010.1.2.3', '10.1.2.3'],
  ['001.002.003.004', '1.2.3.4'],
  ['1.2.3.4.', '1.2.3.4'],
  ['::ffff:1.2.3', '1.2.3.0'],
  ['::1.2', '::1.2.0.0'],
])('%s is not an address and has a different token from %s', async (almost, address) => {
  const [first, second] = await tokensOf([almost, address]);
  expect(first).not.toBe(second);
});

test('the oracle recognises equal and different addresses', () => {
  expect(areSameAddress('10.1.2.3', '::ffff:10.1.2.3', '::FFFF:A01:203', '0:0:0:0:0:ffff:0a01:0203')).toBe(
    true,
  );
  expect(areSameAddress('::', '0::0', '0:0:0:0:0:0:0:0', '::0.0.0.0')).toBe(true);
  expect(areSameAddress('1:2:3:4:5:6:7::', '1:2:3:4:5:6:7:0')).toBe(true);
  expect(areSameAddress('10.1.2.3', '::10.1.2.3')).toBe(false);
  expect(areSameAddress('fe80::1', 'fe80::1%eth0')).toBe(false);
  expect(areSameAddress('10.1.2.3', '10.1.2.3/32')).toBe(false);
});
