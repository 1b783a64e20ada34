import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { maskAll, message, quarantinedBody } from '../support/staging.ts';
import { anyBody } from './odd-bodies.ts';
import { expectedResult } from './oracle.ts';
import { maskBodies } from './outcomes.ts';

/** Number of batches, each of up to 200 bodies. TEST_BODIES overrides it. */
const RUNS = Number(process.env['TEST_BODIES'] ?? 25);

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

test(
  'each arbitrary body is loaded or quarantined by the rules, and the valid bodies in its batch load',
  { timeout: 60_000 + RUNS * 5_000 },
  async () => {
    const counts = { loaded: 0, quarantined: 0 };
    await fc.assert(
      fc.asyncProperty(fc.array(anyBody, { minLength: 1, maxLength: 200, size: 'max' }), async (bodies) => {
        const results = await maskBodies(db, bodies);
        for (const result of results) counts[result] += 1;
        const expected = bodies.map((body, index) => expectedResult(body) ?? results[index]);
        // The comparison is for each body, so that fast-check shrinks a failure to the body that caused it.
        const wrong = bodies.filter((_, index) => results[index] !== expected[index]);
        expect(wrong).toEqual([]);
      }),
      { numRuns: RUNS },
    );
    // The property proves little unless both results occur.
    expect(counts.loaded).toBeGreaterThan(RUNS);
    expect(counts.quarantined).toBeGreaterThan(RUNS);
  },
);

test('a quarantined body is stored byte for byte', async () => {
  await fc.assert(
    fc.asyncProperty(
      anyBody.filter((body) => expectedResult(body) === 'quarantined'),
      async (body) => {
        const malformed = message(body);
        await maskAll(db, [malformed]);
        expect(await quarantinedBody(db, malformed.id)).toEqual(Buffer.from(body as string));
      },
    ),
    { numRuns: 2 * RUNS },
  );
});
