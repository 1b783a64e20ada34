import { afterAll, beforeAll, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

test('a fresh database is unsealed and empty', async () => {
  const { rows } = await db.superuser.query('select * from staging.status()');
  expect(rows[0]).toMatchObject({ sealed: false, loaded: '0' });
});
