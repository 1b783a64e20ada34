/** Bodies that are staged in the clear are in unlogged tables only. */
import { randomBytes, randomUUID } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { copyIn, encodeRows, type RowOf } from '../../src/database/copy.ts';
import { unseal } from '../../src/database/kek.ts';
import { COPY_INBOX, INBOX_FIELDS } from '../../src/load/inbox.ts';
import { CanarySet } from '../support/leaks/canaries.ts';
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

const filler = (bytes: number): string => randomBytes(bytes / 2).toString('hex');

/** A row for the inbox with one message. `columns` replaces columns, by index. */
function rowOf(body: string, columns: Record<number, null | readonly never[]>) {
  const row = [randomUUID(), [randomUUID()], ['r'], [0], [1], [body]];
  return Object.assign(row, columns) as unknown as RowOf<typeof INBOX_FIELDS>;
}

const COLUMNS = ['batch_id', 'message_ids', 'receipt_handles', 'sent_ats', 'receive_counts', 'bodies'];

test.each([
  ...COLUMNS.map((name, index) => [`whose ${name} is null`, { [index]: null }] as const),
  ...COLUMNS.slice(1).map((name, index) => [`whose ${name} is too short`, { [index + 1]: [] }] as const),
])('a row %s is refused, and its body leaks nowhere', async (_, columns) => {
  const canaries = new CanarySet();
  const client = await world.db.pool('loader').connect();
  const row = encodeRows(INBOX_FIELDS, [rowOf(canaries.text('body'), columns)]);
  const copy = copyIn(client, COPY_INBOX, row);
  expect(await world.recorder.codeOf(copy)).toBe('ML014');
  client.release(true);
  expect(await scan(world, canaries.all)).toEqual([]);
});

test.each(COLUMNS.slice(1))('a row with a null among its %s is refused', async (name) => {
  const two = {
    message_ids: 'array[gen_random_uuid(), gen_random_uuid()]',
    receipt_handles: `array['r', 'r']`,
    sent_ats: 'array[now(), now()]',
    receive_counts: 'array[1, 1]',
    bodies: `array['b'::bytea, 'b']`,
  };
  const values = Object.entries(two).map(([column, array]) =>
    column === name ? array.replace(/, .*\]$/, ', null]') : array,
  );
  const insert = world.db
    .pool('loader')
    .query(`insert into staging.inbox select gen_random_uuid(), ${values.join(', ')}`);
  expect(await world.recorder.codeOf(insert)).toBe('ML014');
});

test('a batch larger than work_mem is staged without a temporary file', async () => {
  const files = async (): Promise<number> => {
    const { rows } = await world.db.superuser.query<{ files: string }>(
      'select temp_files as files from pg_stat_database where datname = current_database()',
    );
    return Number(rows[0]!.files);
  };
  const before = await files();
  await stage(
    world.db,
    Array.from({ length: 50 }, () => message(event({ x: filler(200_000) }))),
  );
  // Otherwise a session may report its statistics only when it ends.
  await world.db.pool('loader').query('select pg_stat_force_next_flush()');
  expect(await files()).toBe(before);
});

test('a batch that is lost before it is masked leaks nothing', async () => {
  const canaries = new CanarySet();
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

/** Scans while masking of a batch waits to insert its first row into the vault, which is written last. */
async function scanWhileMasking(bodies: (canaries: CanarySet) => string[]): Promise<string[]> {
  const canaries = new CanarySet();
  const fresh = message(event({ device_id: randomUUID() }));
  const messages = bodies(canaries).map((body) => message(body));
  const batch = await stage(world.db, [...messages, fresh]);
  const holder = await world.db.superuser.connect();
  await holder.query(`
    create function public.hold() returns trigger language plpgsql as
      $$ begin perform pg_advisory_xact_lock(1); return new; end $$;
    create trigger hold before insert on masking.vault for each row execute function public.hold();
    select pg_advisory_lock(1)`);
  const masking = mask(world.db, batch);
  const waiting = `select from pg_stat_activity where wait_event_type = 'Lock' and query like '%mask_batch%'`;
  await until(async () => (await world.db.superuser.query(waiting)).rowCount === 1);
  const found = await scan(world, canaries.all);
  await holder.query('select pg_advisory_unlock(1)');
  await masking;
  await holder.query('drop trigger hold on masking.vault; drop function public.hold()');
  holder.release();
  return found;
}

test('a batch of the default size leaks nothing while it is masked', async () => {
  const found = await scanWhileMasking((canaries) => [
    event({ device_id: canaries.text('device') }),
    event({ user_id: null, x: canaries.text('body') }),
    ...Array.from({ length: 1_990 }, () => event({ device_id: filler(250) })),
  ]);
  expect(found).toEqual([]);
});

// masking.mask_rows materialises the bodies of malformed messages, up to 2 KB each (longer ones stay in TOAST). If they
// took more than work_mem, which requires a larger LOAD_BATCH_BYTES, they would go to a temporary file.
test('a malformed batch of twice the default size leaks nothing while it is masked', async () => {
  const found = await scanWhileMasking((canaries) =>
    Array.from({ length: 4_000 }, (_, n) =>
      event({ user_id: null, x: n === 0 ? canaries.text('body') : filler(1_800) }),
    ),
  );
  expect(found).toEqual([]);
});
