import { afterAll, beforeAll, expect, test } from 'vitest';
import { readCorpus } from '../corpus/read.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { maskBodies } from './outcomes.ts';

const corpus = readCorpus();
/** An event with the text as the value of an unknown field. */
const inEvent = (text: Buffer): Buffer =>
  Buffer.concat([Buffer.from('{"user_id":"u","x":'), text, Buffer.from('}')]);

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

test('an event with an unknown field loads if the field is JSON, and is quarantined otherwise', async () => {
  const results = await maskBodies(
    db,
    corpus.map(({ text }) => inEvent(text)),
  );
  const wrong = corpus.filter(
    ({ kind }, index) => kind !== 'i' && results[index] !== (kind === 'y' ? 'loaded' : 'quarantined'),
  );
  expect(wrong.map(({ name }) => name)).toEqual([]);
});

test('a body has the same result alone in its batch as among others', async () => {
  const among = await maskBodies(
    db,
    corpus.map(({ text }) => inEvent(text)),
  );
  const alone = [];
  for (const { text } of corpus) alone.push(...(await maskBodies(db, [inEvent(text)])));
  expect(alone).toEqual(among);
});

test('no text of the corpus is a login event by itself', async () => {
  const results = await maskBodies(
    db,
    corpus.map(({ text }) => text),
  );
  expect(corpus.filter((_, index) => results[index] !== 'quarantined').map(({ name }) => name)).toEqual([]);
});
