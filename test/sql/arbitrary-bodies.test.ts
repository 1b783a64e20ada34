import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { maskAll, message, quarantinedBody } from '../support/staging.ts';
import { anyBody } from './odd-bodies.ts';
import { expectedEnd } from './oracle.ts';
import { maskOdd } from './outcomes.ts';

/** TEST_BODIES asks for more of them: it is the number of batches of up to 200. */
const RUNS = Number(process.env['TEST_BODIES'] ?? 25);

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

test(
  'whatever the bodies are, each ends in the one place where it belongs, and the good ones between them load',
  { timeout: 60_000 + RUNS * 5_000 },
  async () => {
    const ended = { loaded: 0, quarantined: 0 };
    await fc.assert(
      fc.asyncProperty(fc.array(anyBody, { minLength: 1, maxLength: 200, size: 'max' }), async (bodies) => {
        const ends = await maskOdd(db, bodies);
        for (const end of ends) ended[end] += 1;
        const expected = bodies.map((body, index) => expectedEnd(body) ?? ends[index]);
        // Compared one by one, so that a failure shrinks to the body that is treated wrongly.
        const wrong = bodies.filter((_, index) => ends[index] !== expected[index]);
        expect(wrong).toEqual([]);
      }),
      { numRuns: RUNS },
    );
    // A property over bodies that all end alike would prove little.
    expect(ended.loaded).toBeGreaterThan(RUNS);
    expect(ended.quarantined).toBeGreaterThan(RUNS);
  },
);

test('what is quarantined is kept byte by byte', async () => {
  await fc.assert(
    fc.asyncProperty(
      anyBody.filter((body) => expectedEnd(body) === 'quarantined'),
      async (body) => {
        const odd = message(body);
        await maskAll(db, [odd]);
        expect(await quarantinedBody(db, odd.id)).toEqual(Buffer.from(body as string));
      },
    ),
    { numRuns: 2 * RUNS },
  );
});
