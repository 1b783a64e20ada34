/** What is staged in the clear leaves no trace beside its unlogged table. */
import { randomBytes, randomUUID } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { bytea, copyIn, encodeRows, int4, text, timestamptz, uuid } from '../../src/database/copy.ts';
import { unseal } from '../../src/database/kek.ts';
import { CanaryBook } from '../support/leaks/canaries.ts';
import { scan } from '../support/leaks/scan.ts';
import { createWorld, type World } from '../support/leaks/world.ts';
import { until } from '../support/pipeline.ts';
import { event, mask, message, stage } from '../support/staging.ts';

let world: World;
beforeAll(async () => {
  world = await createWorld({ shared_preload_libraries: 'pg_stat_statements', work_mem: '4MB' });
  await unseal(world.db.pool('worker'), world.db.kek);
});
afterAll(() => world.stop());

test('a staged row with a column missing', async () => {
  const canaries = new CanaryBook();
  const client = await world.db.pool('loader').connect();
  const row = encodeRows(
    [uuid, uuid, text, timestamptz, int4, bytea],
    [[randomUUID(), randomUUID(), 'r', null, 1, canaries.text('body')]],
  );
  const copy = copyIn(client, 'copy staging.inbox from stdin (format binary)', row);
  expect(await world.witness.codeOf(copy)).toBe('ML014');
  client.release(true);
  expect(await scan(world, canaries.all)).toEqual([]);
});

test('a batch that was lost before it was masked', async () => {
  const canaries = new CanaryBook();
  const batch = await stage(world.db, [message(event({ ip: canaries.address('ip') }))]);
  await world.db.superuser.query('analyze');
  const { rows } = await world.db.superuser.query<{ tables: string }>(
    `select string_agg(attrelid::regclass::text, ', ') as tables from pg_attribute a join pg_class c on c.oid = attrelid
      where c.relkind = 'r' and c.relpersistence = 'u' and attname = 'body'`,
  );
  await world.db.superuser.query(`truncate ${rows[0]!.tables}`);
  await mask(world.db, batch);
  expect(await scan(world, canaries.all)).toEqual([]);
});

/** Masks a batch and looks into files while its last row waits to be written. */
async function scanWhileMasking(bodies: (canaries: CanaryBook) => string[]): Promise<string[]> {
  const canaries = new CanaryBook();
  const messages = bodies(canaries).map((body) => message(body));
  const last = { id: `ffffffff-${randomUUID().slice(9)}`, body: 'no JSON' };
  const batch = await stage(world.db, [...messages, last]);
  const holder = await world.db.superuser.connect();
  await holder.query('begin');
  await holder.query(`insert into staging.quarantine values ($1, now(), 'held', 1, '')`, [last.id]);
  const masking = mask(world.db, batch);
  const waiting = `select from pg_stat_activity where wait_event_type = 'Lock' and query like '%mask_batch%'`;
  await until(async () => (await world.db.superuser.query(waiting)).rowCount === 1);
  const found = await scan(world, canaries.all);
  await holder.query('rollback');
  holder.release();
  await masking;
  return found;
}

const filler = (bytes: number): string => randomBytes(bytes / 2).toString('hex');

test('a batch of the default size that is being masked', async () => {
  const found = await scanWhileMasking((canaries) => [
    event({ device_id: canaries.text('device') }),
    event({ user_id: null, x: canaries.text('body') }),
    ...Array.from({ length: 1_990 }, () => event({ device_id: filler(250) })),
  ]);
  expect(found).toEqual([]);
});

// Reported: what masking.mask_rows materialises holds the bodies of malformed messages, and beyond work_mem it goes to a
// temporary file: bodies of up to 2 KB (longer ones stay behind TOAST pointers), with LOAD_BATCH_BYTES above work_mem.
test('a batch of twice the default size that is being masked, all of it malformed', async () => {
  const found = await scanWhileMasking((canaries) =>
    Array.from({ length: 4_000 }, (_, n) =>
      event({ user_id: null, x: n === 0 ? canaries.text('body') : filler(1_800) }),
    ),
  );
  expect(found).toEqual([]);
});
