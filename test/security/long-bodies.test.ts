/**
 * Postgres stores values that are too long for a page in a TOAST table. A TOAST table has no row-level
 * security, so a member of pg_read_all_data can read it by name.
 */
import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  mask,
  maskAll,
  message,
  loginOf,
  outcomesOf,
  quarantinedBody,
  stage as stageBatch,
} from '../support/staging.ts';
import type { Message } from '../support/staging.ts';
import { revealed, setStage } from '../support/unmask.ts';
import type { Session, Stage } from '../support/unmask.ts';

const DEVICE = `device-${randomBytes(20).toString('hex')}`;
const LENGTHS = [500, 1500, 2500, 6900, 7100, 9000, 60_000, 300_000];

let stage: Stage;
let reader: Session;
beforeAll(async () => {
  stage = await setStage();
  reader = await stage.join('reader', 'pg_read_all_data');
});
afterAll(() => stage.drop());

/** An event of this length that hardly compresses, or a body that is not an event. */
function long(length: number, how: 'event' | 'no JSON' = 'event'): Message {
  const start = how === 'event' ? '{"user_id":"somebody","ip":"203.0.113.5","device_id":"' : 'no JSON: ';
  const filler = randomBytes(length).toString('base64').slice(0, length);
  return message(
    `${start}${DEVICE}${how === 'event' ? '","filler":"' : ''}${filler}${how === 'event' ? '"}' : ''}`,
  );
}

/** All TOAST data of staging, as a member of pg_read_all_data reads it. */
async function toastData(): Promise<Buffer> {
  const { rows } = await stage.db.superuser.query<{ name: string }>(
    `select c.reltoastrelid::regclass::text as name from pg_class c
      where c.oid::regclass::text ~ '^staging\\.' and c.reltoastrelid <> 0`,
  );
  const chunks: Buffer[] = [];
  for (const { name } of rows) {
    const read = await reader.run(`select chunk_data from ${name} order by chunk_id, chunk_seq`);
    expect(read.state).toBe('none');
    chunks.push(...read.rows.map((row) => row['chunk_data'] as Buffer));
  }
  return Buffer.concat(chunks);
}

/**
 * Compression inserts at most one byte into every eight, so some six characters of the canary stay together.
 */
function showsCanary(bytes: Buffer): boolean {
  return Array.from({ length: DEVICE.length - 13 }, (_, at) => DEVICE.slice(at + 7, at + 13)).some((part) =>
    bytes.includes(part),
  );
}

test.each(LENGTHS)('a staged body of %i bytes is not in the clear in a TOAST table', async (length) => {
  await stage.db.superuser.query('truncate staging.raw_messages');
  await stageBatch(stage.db, [long(length), long(length, 'no JSON')]);
  const bytes = await toastData();
  expect(showsCanary(bytes)).toBe(false);
  // Long bodies do have TOAST data. Otherwise the test would prove nothing.
  expect(bytes.length > length).toBe(length > 8192);
});

test.each(LENGTHS)('an event of %i bytes is masked like any other', async (length) => {
  const sent = long(length);
  await maskAll(stage.db, [sent]);
  expect(await loginOf(stage.db, sent.id)).toMatchObject({ user_id: 'somebody' });
  const unmasker = await stage.join(`unmasker_${length}`, 'logins_unmasker');
  const login = await loginOf(stage.db, sent.id);
  const id = await unmasker.value(`select unmask.request('device_id', $1, 'INC-1')`, [
    [login['masked_device_id']],
  ]);
  expect(Object.values(await revealed(unmasker, id))).toEqual([DEVICE]);
});

test.each(LENGTHS)(
  'a malformed body of %i bytes is quarantined completely, and can be replayed',
  async (length) => {
    const sent = long(length, 'no JSON');
    await mask(stage.db, await stageBatch(stage.db, [sent, message()]));
    expect(await outcomesOf(stage.db, sent.id)).toEqual([{ quarantined: 'body: not JSON' }]);
    expect((await quarantinedBody(stage.db, sent.id)).toString()).toBe(sent.body);
    await stage.db.pool('custodian').query('select * from staging.replay($1)', [[sent.id]]);
    expect((await quarantinedBody(stage.db, sent.id)).toString()).toBe(sent.body);
  },
);

test('a long and deeply nested body is quarantined completely', async () => {
  const sent = message(`{"user_id":"somebody","deep":${'['.repeat(100_000)}${']'.repeat(100_000)}}`);
  await mask(stage.db, await stageBatch(stage.db, [sent]));
  expect((await quarantinedBody(stage.db, sent.id)).toString()).toBe(sent.body);
});
