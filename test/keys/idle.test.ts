import { afterAll, beforeAll, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { distinct, load, maskedLogins, request, sharedLogins } from '../support/keys.ts';
import { sqlstate } from '../support/sqlstate.ts';
import { inTransaction } from '../support/staging.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

test('a reveal immediately after its request does not wait for WAL that is not flushed', async () => {
  await load(db, sharedLogins(3));
  const tokens = distinct((await maskedLogins(db)).map(({ ip }) => ip));
  const id = await request(db, 'ip', tokens);
  await db.superuser.query(`select pg_logical_emit_message(false, 'test', 'neither committed nor flushed')`);
  const revealed = inTransaction(db.pool('unmasker'), async (client) => {
    // A reveal that hangs fails the test, and a slow one does not.
    await client.query(`set local statement_timeout = '5s'`);
    await client.query('select * from unmask.reveal($1)', [id]);
  });
  expect(await sqlstate(revealed)).toBe('none');
});
