import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { event, maskAll, message, outcomesOf, quarantinedBody, type Body } from '../support/staging.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

/** All of Unicode and what is none: lone surrogates, too. */
const text = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 300 }),
  fc.string({ unit: 'grapheme', maxLength: 40 }),
  fc.ipV4(),
  fc.ipV6(),
  fc
    .array(fc.integer({ min: 0, max: 0xffff }), { maxLength: 20 })
    .map((units) => String.fromCharCode(...units)),
);
const value = fc.oneof(
  { weight: 4, arbitrary: text },
  { weight: 1, arbitrary: fc.jsonValue() },
  fc.constant(undefined),
);
const login = fc
  .record({
    user_id: value,
    ip: value,
    device_id: value,
    device_type: value,
    locale: value,
    app_version: value,
  })
  .map((properties) => JSON.stringify(properties));

/** JSON with a few of its bytes changed. */
const mutated = fc
  .tuple(login, fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 4 }))
  .map(([json, changes]) => {
    const bytes = Buffer.from(json);
    for (const [at, byte] of changes) bytes[at % bytes.length] = byte;
    return bytes;
  });

const body: fc.Arbitrary<Body> = fc.oneof(
  { weight: 4, arbitrary: login },
  { weight: 3, arbitrary: mutated },
  { weight: 1, arbitrary: fc.uint8Array({ maxLength: 200 }) },
  { weight: 1, arbitrary: fc.json() },
  { weight: 1, arbitrary: text },
);

test('whatever the bodies are, each ends in one place, and the good ones between them load', async () => {
  const ended = { loaded: 0, quarantined: 0 };
  await fc.assert(
    fc.asyncProperty(fc.array(body, { minLength: 1, maxLength: 60 }), async (bodies) => {
      const odd = bodies.map((each) => message(each));
      const good = bodies.map(() => message(event()));
      const { receipts } = await maskAll(
        db,
        odd.flatMap((each, index) => [each, good[index]!]),
      );
      expect(receipts).toHaveLength(2 * bodies.length);
      for (const { id } of good) expect(await outcomesOf(db, id)).toEqual(['loaded']);
      for (const { id, body } of odd) {
        const outcomes = await outcomesOf(db, id);
        expect(outcomes).toHaveLength(1);
        const isLoaded = outcomes[0] === 'loaded';
        ended[isLoaded ? 'loaded' : 'quarantined'] += 1;
        const kept = isLoaded ? undefined : await quarantinedBody(db, id);
        expect(kept).toEqual(isLoaded ? undefined : Buffer.from(body as string));
      }
    }),
    // A failure prints its seed and the smallest bodies that fail.
    { numRuns: 25, verbose: fc.VerbosityLevel.None },
  );
  // A property over bodies that all end alike would prove little.
  expect(ended.loaded).toBeGreaterThan(0);
  expect(ended.quarantined).toBeGreaterThan(0);
});
