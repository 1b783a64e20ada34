import fc from 'fast-check';
import type pg from 'pg';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import {
  arrayOf,
  bytea,
  copyIn,
  encodeRows,
  int4,
  text,
  timestamptz,
  uuid,
  type RowOf,
} from '../../src/database/copy.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';

const FIELDS = [uuid, text, timestamptz, int4, bytea] as const;
const COPY = 'copy copied from stdin (format binary)';

let db: TestDatabase;
let client: pg.PoolClient;

beforeAll(async () => {
  db = await createTestDatabase({ sealed: true });
  client = await db.superuser.connect();
  await client.query('create temp table copied (id uuid, t text, at timestamptz, n int, b bytea)');
  await client.query('create temp table arrays (id uuid[], t text[], at timestamptz[], n int[], b bytea[])');
});
afterAll(async () => {
  client.release();
  await db.drop();
});
beforeEach(() => client.query('truncate copied'));

test('rows arrive as they were', async () => {
  const id = fc.uuid();
  // Postgres's text has no NUL; its bytea has.
  const words = fc.string({ unit: 'grapheme' }).filter((word) => !word.includes('\0'));
  const at = fc.integer({ min: 0, max: 4_102_444_800_000 });
  const n = fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 });
  const row = fc.tuple(id, words, at, n, fc.uint8Array()).map((values) => values as RowOf<typeof FIELDS>);
  await fc.assert(
    fc.asyncProperty(fc.array(row, { maxLength: 30 }), async (rows) => {
      await client.query('truncate copied');
      await copyIn(client, COPY, encodeRows(FIELDS, rows));
      const copied = await client.query({ text: 'select * from copied', rowMode: 'array' });
      expect(copied.rows).toEqual(
        rows.map(([id, t, at, n, b]) => [id, t, new Date(at!), n, Buffer.from(b as Uint8Array)]),
      );
    }),
    { numRuns: 40 },
  );
});

test('arrays arrive as they were', async () => {
  const at = Date.UTC(2026, 0, 1);
  const id = '0192aaaa-0000-4000-8000-000000000001';
  await copyIn(
    client,
    'copy arrays from stdin (format binary)',
    encodeRows(
      [arrayOf(uuid), arrayOf(text), arrayOf(timestamptz), arrayOf(int4), arrayOf(bytea)],
      [
        [[id, id], ['a', '', 'ü{,"'], [at], [1, -1], ['ü\0', Buffer.from([255])]],
        [[], [], [], [], []],
      ],
    ),
  );
  const { rows } = await client.query({ text: 'select * from arrays', rowMode: 'array' });
  expect(rows).toEqual([
    [[id, id], ['a', '', 'ü{,"'], [new Date(at)], [1, -1], [Buffer.from('ü\0'), Buffer.from([255])]],
    [[], [], [], [], []],
  ]);
});

test('null is NULL', async () => {
  await copyIn(client, COPY, encodeRows(FIELDS, [[null, null, null, null, null]]));
  const { rows } = await client.query('select * from copied');
  expect(rows).toEqual([{ id: null, t: null, at: null, n: null, b: null }]);
});

test('a string in a bytea is its UTF-8, a lone surrogate a replacement character', async () => {
  await copyIn(
    client,
    'copy copied (b) from stdin (format binary)',
    encodeRows([bytea], [['ü\0'], ['\ud800']]),
  );
  const { rows } = await client.query('select b from copied');
  expect(rows).toEqual([{ b: Buffer.from('ü\0') }, { b: Buffer.from('\ufffd') }]);
});

test('no rows are no rows', async () => {
  await copyIn(client, COPY, encodeRows(FIELDS, []));
  expect((await client.query('select * from copied')).rows).toEqual([]);
});

test('a COPY that is refused says why, and the connection stays good', async () => {
  const large = encodeRows([bytea], [[Buffer.alloc(2 ** 22)]]);
  await expect(copyIn(client, 'copy nowhere from stdin (format binary)', large)).rejects.toMatchObject({
    code: '42P01',
  });
  await expect(copyIn(client, COPY, Buffer.from('no such format'))).rejects.toMatchObject({ code: '22P04' });
  expect((await client.query('select 1 as one')).rows).toEqual([{ one: 1 }]);
});
