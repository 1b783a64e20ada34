/** What happens to messages in normal operation and in failures, with canaries everywhere. */
import { randomUUID } from 'node:crypto';
import { ABSENT, LENGTHS, NO_EVENT, ODD, UNREADABLE, WRONG_TYPES } from '../../sql/bodies.ts';
import { until } from '../pipeline.ts';
import { close, event, mask, message, stage, type Message } from '../staging.ts';
import type { World } from './world.ts';

export const worker = (world: World, variables: Record<string, string> = {}) =>
  world.run('worker', 'worker', [], { MASKING_KEK: world.db.kek.toString('hex'), ...variables });
export const workOnce = (world: World) =>
  world.run('worker', 'worker', ['--once'], { MASKING_KEK: world.db.kek.toString('hex') }).ended;

/** An event whose address and device id are canaries. */
export function secretEvent(world: World, name: string, properties: Record<string, unknown> = {}): string {
  const { canaries } = world;
  return event({ ip: canaries.address(`ip of ${name}`), device_id: canaries.text(`device of ${name}`), ...properties });
} // prettier-ignore

export const count = async (world: World, what: string): Promise<number> =>
  Number((await world.db.superuser.query(`select count(*) from ${what}`)).rows[0].count);
export const allDone = async (world: World): Promise<boolean> =>
  (await count(world, 'staging.batches where acked_at is null and lost_at is null')) === 0;

/** Sends well-formed and malformed messages through SQS, loader and worker, while some requests to SQS fail. */
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
  // Bodies that SQS does not accept (bytes, control characters) are staged by `stageUnusualBodies`.
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

/** Stages and masks unusual bodies, including those that SQS does not accept. Each is delivered twice. */
export async function stageUnusualBodies(world: World): Promise<void> {
  const cases = [...UNREADABLE, ...NO_EVENT, ...ODD, ...WRONG_TYPES, ...LENGTHS, ...ABSENT];
  const messages = cases.map(({ name, body }) => message(body(world.canaries.text(`staged: ${name}`))));
  for (const copies of [messages, messages]) {
    const batch = await stage(world.db, copies);
    // Collects statistics while bodies are staged: they must not contain any.
    await world.db.superuser.query('analyze');
    await mask(world.db, batch);
    await mask(world.db, batch);
    await close(world.db, batch);
  }
}

/** Stages a batch of messages with canaries. */
export async function staged(world: World, ...names: string[]): Promise<{ batch: string; messages: Message[] }> {
  const messages = names.map((name) => message(secretEvent(world, name)));
  return { batch: await stage(world.db, messages), messages };
} // prettier-ignore

/** Lets masking fail with errors that contain values, as a bug might. Returns the SQLSTATEs that the caller gets. */
export async function failWithValues(world: World): Promise<string[]> {
  const { db, recorder } = world;
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
    codes.push(await recorder.codeOf(mask(db, batch)));
    if (code === '53100') await workOnce(world);
    await db.superuser.query(rows[0]!.definition);
    await mask(db, batch);
    await close(db, batch);
  }
  return codes;
}

/** Kills Postgres while messages are loaded and masked, and waits until all of them are in user_logins. */
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

/** Ends masking by timeouts, a termination and a deadlock. Returns the SQLSTATEs. */
export async function interrupt(world: World): Promise<Record<string, string>> {
  const { db, recorder } = world;
  const held = await staged(world, 'a batch that is locked');
  const holder = await db.superuser.connect();
  await holder.query('begin');
  await holder.query('select from staging.batches where batch_id = $1 for update', [held.batch]);
  const waiting = await db.pool('worker').connect();
  await waiting.query(`set statement_timeout = 100`);
  const maskHeld = () => waiting.query('select receipt_handle from masking.mask_batch($1)', [held.batch]);
  const timeout = await recorder.codeOf(maskHeld());
  await waiting.query('set statement_timeout = 0; set lock_timeout = 100');
  const lock = await recorder.codeOf(maskHeld());
  await waiting.query('set lock_timeout = 0');
  const ending = recorder.codeOf(maskHeld());
  // It may take a moment until it waits for the lock.
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

/** Two transactions mask the same new values in opposite orders, so that one of them fails. */
async function deadlock(world: World): Promise<string> {
  const { db, recorder, canaries } = world;
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
  const codes = await Promise.all([
    recorder.codeOf(run(0, batches[2]!)),
    recorder.codeOf(run(1, batches[3]!)),
  ]);
  for (const client of clients) client.release(true);
  for (const batch of batches) {
    await mask(db, batch);
    await close(db, batch);
  }
  return codes.sort().join(' ');
}

/** Quarantines a body that contains a canary. Returns the id of its message. */
export async function quarantined(world: World, name: string): Promise<string> {
  const malformed = { id: randomUUID(), body: event({ user_id: null, ip: world.canaries.address(name) }) };
  const batch = await stage(world.db, [malformed]);
  await mask(world.db, batch);
  await close(world.db, batch);
  return malformed.id;
}
