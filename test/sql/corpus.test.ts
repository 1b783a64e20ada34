import { afterAll, beforeAll, expect, test } from 'vitest';
import { readCorpus } from '../corpus/read.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { maskOdd } from './outcomes.ts';

const corpus = readCorpus();
/** The text as the value of a field that nobody knows. */
const inEvent = (text: Buffer): Buffer =>
  Buffer.concat([Buffer.from('{"user_id":"u","x":'), text, Buffer.from('}')]);

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

test('an event loads with whatever JSON in it, and is quarantined with what is none', async () => {
  const ends = await maskOdd(
    db,
    corpus.map(({ text }) => inEvent(text)),
  );
  const wrong = corpus.filter(
    ({ kind }, index) => kind !== 'i' && ends[index] !== (kind === 'y' ? 'loaded' : 'quarantined'),
  );
  expect(wrong.map(({ name }) => name)).toEqual([]);
});

test('each alone in its batch ends as it does among others', async () => {
  const among = await maskOdd(
    db,
    corpus.map(({ text }) => inEvent(text)),
  );
  const alone = [];
  for (const { text } of corpus) alone.push(...(await maskOdd(db, [inEvent(text)])));
  expect(alone).toEqual(among);
});

test('none of them is an event by itself', async () => {
  const ends = await maskOdd(
    db,
    corpus.map(({ text }) => text),
  );
  expect(corpus.filter((_, index) => ends[index] !== 'quarantined').map(({ name }) => name)).toEqual([]);
});
