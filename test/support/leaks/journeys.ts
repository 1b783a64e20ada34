/** What happens to messages in an ordinary life of the pipeline, and in an unlucky one, with canaries in all of it. */
import { randomUUID } from 'node:crypto';
import { ABSENT, LENGTHS, NO_EVENT, ODD, UNREADABLE, WRONG_TYPES } from '../../sql/bodies.ts';
import { until } from '../pipeline.ts';
import { close, event, mask, message, stage, type Message } from '../staging.ts';
import type { World } from './world.ts';

export const worker = (world: World, variables: Record<string, string> = {}) =>
  world.run('worker', 'worker', [], { MASKING_KEK: world.db.kek.toString('hex'), ...variables });
export const workOnce = (world: World) =>
  world.run('worker', 'worker', ['--once'], { MASKING_KEK: world.db.kek.toString('hex') }).ended;

/** An event with an address and a device id that are looked for. */
export function secretEvent(world: World, name: string, properties: Record<string, unknown> = {}): string {
  const { canaries } = world;
  return event({ ip: canaries.address(`ip of ${name}`), device_id: canaries.text(`device of ${name}`), ...properties });
} // prettier-ignore

export const count = async (world: World, what: string): Promise<number> =>
  Number((await world.db.superuser.query(`select count(*) from ${what}`)).rows[0].count);
export const allDone = async (world: World): Promise<boolean> =>
  (await count(world, 'staging.batches where acked_at is null and lost_at is null')) === 0;

/** Good and malformed messages through SQS, loader and worker, with SQS failing now and then. */
export async function load(world: World): Promise<void> {
  const { canaries, queue } = world;
  queue.fail('ReceiveMessage', [
    { error: canaries.text('error of SQS while receiving') },
    'reset',
    'cut',
    'cut',
  ]);
  queue.fail('DeleteMessageBatch', [
    { error: canaries.text('error of SQS while deleting') },
    'reset',
    { error: 'again' },
    { error: 'and again' },
  ]);
  const good = Array.from({ length: 40 }, (_, n) => secretEvent(world, `login ${n}`));
  const spellings = ['::ffff:10.1.2.3', 'no address at all', ' 10.1.2.3', 'fe80::1%eth0'].map((ip, n) =>
    event({ ip: `${ip}${canaries.text(`odd address ${n}`)}`, device_id: '\u00e9"\\' }),
  );
  // What SQS does not take (bytes, controls) is staged below.
  const bad = [...UNREADABLE, ...NO_EVENT, ...WRONG_TYPES]
    .map(({ name, body }) => body(canaries.text(`body: ${name}`)))
    .filter((body): body is string => typeof body === 'string' && body !== '' && body.length < 200_000);
  await world.send([...good, ...spellings, ...bad]);
  const loader = world.run('load', 'loader', ['--follow']);
  const working = worker(world);
  const sent = good.length + spellings.length + bad.length;
  const arrived = async () =>
    (await count(world, 'public.user_logins')) + (await count(world, 'staging.quarantine')) >= sent;
  await until(async () => (await arrived()) && (await allDone(world)) && queue.waiting === 0);
  loader.kill('SIGTERM');
  working.kill('SIGTERM');
  await Promise.all([loader.ended, working.ended]);
}

/** Bodies that no SQS would take, each twice: once as a duplicate of itself. */
export async function stageEverything(world: World): Promise<void> {
  const cases = [...UNREADABLE, ...NO_EVENT, ...ODD, ...WRONG_TYPES, ...LENGTHS, ...ABSENT];
  const messages = cases.map(({ name, body }) => message(body(world.canaries.text(`staged: ${name}`))));
  for (const copies of [messages, messages]) {
    const batch = await stage(world.db, copies);
    // Statistics are taken of what is staged: that is what must have none.
    await world.db.superuser.query('analyze');
    await mask(world.db, batch);
    await mask(world.db, batch);
    await close(world.db, batch);
  }
}

/** A batch of messages with canaries, staged and not yet masked. */
export async function staged(world: World, ...names: string[]): Promise<{ batch: string; messages: Message[] }> {
  const messages = names.map((name) => message(secretEvent(world, name)));
  return { batch: await stage(world.db, messages), messages };
} // prettier-ignore

/** Masking that fails with an error that holds a value, as a bug of Postgres or ours might. */
export async function failWithValues(world: World): Promise<string[]> {
  const { db, witness } = world;
  const { rows } = await db.superuser.query<{ definition: string }>(
    `select pg_get_functiondef('masking.padded(text)'::regprocedure) as definition`,
  );
  const codes: string[] = [];
  for (const code of ['22000', '23514', '53100', 'P0001', 'XX000']) {
    const { batch } = await staged(world, `a batch that failed with ${code}`);
    await db.superuser.query(
      `create or replace function masking.padded(value text) returns bytea language plpgsql immutable as $$
       begin
         -- The sample event of masking.probe passes: the fault is to count as the message's.
         if value = '2001:db8::1' or value like 'sample %' then
           return convert_to(value, 'UTF8');
         end if;
         raise exception using errcode = '${code}', message = 'cannot pad ' || value, detail = value, hint = value,
           schema = value, "table" = value, "column" = value, constraint = value, datatype = value;
       end $$`
        .replace('schema = value, "table" = value', 'schema = value, table = value')
        .replace('"column"', 'column'),
    );
    codes.push(await witness.codeOf(mask(db, batch)));
    if (code === '53100') await workOnce(world);
    await db.superuser.query(rows[0]!.definition);
    await mask(db, batch);
    await close(db, batch);
  }
  return codes;
}

/** Postgres killed while it loads and masks; what was under way comes back from the queue. */
export async function crash(world: World, times: number): Promise<void> {
  const sent = 300;
  const before = await count(world, 'public.user_logins');
  await world.send(Array.from({ length: sent }, (_, n) => secretEvent(world, `login ${n} around a crash`)));
  const loader = world.run('load', 'loader', ['--follow'], { LOAD_BATCH_ROWS: '30' });
  const working = worker(world);
  for (let time = 1; time <= times; time += 1) {
    await until(async () => (await count(world, 'public.user_logins')) >= before + (time * sent) / (times + 3));
    world.postgres.kill('SIGKILL');
  }
  await until(async () => (await count(world, 'public.user_logins')) >= before + sent);
  loader.kill('SIGTERM');
  working.kill('SIGTERM');
  await Promise.all([loader.ended, working.ended]);
} // prettier-ignore

/** Statements that are cancelled, terminated, and in each other's way. */
export async function interrupt(world: World): Promise<Record<string, string>> {
  const { db, witness } = world;
  const held = await staged(world, 'a batch that somebody holds');
  const holder = await db.superuser.connect();
  await holder.query('begin');
  await holder.query('select from staging.batches where batch_id = $1 for update', [held.batch]);
  const waiting = await db.pool('worker').connect();
  await waiting.query(`set statement_timeout = 100`);
  const maskHeld = () => waiting.query('select receipt_handle from masking.mask_batch($1)', [held.batch]);
  const timeout = await witness.codeOf(maskHeld());
  await waiting.query('set statement_timeout = 0; set lock_timeout = 100');
  const lock = await witness.codeOf(maskHeld());
  await waiting.query('set lock_timeout = 0');
  const ending = witness.codeOf(maskHeld());
  // It may not wait for the lock yet.
  await until(async () => {
    const { rowCount } = await db.superuser.query(
      `select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type = 'Lock' and query like '%mask_batch%'`,
    );
    return rowCount === 1;
  });
  const terminated = await ending;
  waiting.release(true);
  await holder.query('rollback');
  holder.release();
  await mask(db, held.batch);
  return { timeout, lock, terminated, deadlock: await deadlock(world) };
}

/** Two transactions that mask the same new values in opposite orders; one of them fails. */
async function deadlock(world: World): Promise<string> {
  const { db, witness, canaries } = world;
  const ips = [canaries.address('first ip of a deadlock'), canaries.address('second ip of a deadlock')];
  const batches = [];
  for (const ip of [ips[0], ips[1], ips[1], ips[0]]) {
    batches.push(await stage(db, [message(event({ ip, device_id: null }))]));
  }
  const clients = [await db.pool('worker').connect(), await db.pool('worker').connect()];
  const run = (who: number, batch: string) =>
    clients[who]!.query('select receipt_handle from masking.mask_batch($1)', [batch]);
  for (const client of clients) await client.query('begin');
  await run(0, batches[0]!);
  await run(1, batches[1]!);
  const codes = await Promise.all([witness.codeOf(run(0, batches[2]!)), witness.codeOf(run(1, batches[3]!))]);
  for (const client of clients) client.release(true);
  for (const batch of batches) {
    await mask(db, batch);
    await close(db, batch);
  }
  return codes.sort().join(' ');
}

/** A body that somebody put into quarantine by hand, to have ids of canaries to ask for. */
export async function quarantined(world: World, name: string): Promise<string> {
  const odd = { id: randomUUID(), body: event({ user_id: null, ip: world.canaries.address(name) }) };
  const batch = await stage(world.db, [odd]);
  await mask(world.db, batch);
  await close(world.db, batch);
  return odd.id;
}
