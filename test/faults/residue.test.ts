/** Raw messages leave the disk while others keep arriving. Their removal does not wait for a pause in the traffic. */
import { randomUUID } from 'node:crypto';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { filesHolding } from '../support/files-holding.ts';
import { event, events } from '../support/bodies.ts';
import { startPipeline, until, type Pipeline } from '../support/pipeline.ts';

/** Maximum time from acknowledgement to removal from the disk, in milliseconds. Usually it takes less than a minute. */
const OFF_THE_DISK_MS = 120_000;

let pipeline: Pipeline;
beforeEach(async () => {
  pipeline = await startPipeline();
  await pipeline.superuser.query('create extension pageinspect schema public');
});
afterEach(() => pipeline.stop());

const number = async (query: string, values: unknown[] = []): Promise<number> =>
  Number((await pipeline.superuser.query<{ n: string }>(`select (${query}) as n`, values)).rows[0]!.n);

/** Counts the pages of staging that contain a text, in memory or on disk. */
const pagesWith = (text: string): Promise<number> =>
  number(
    `select count(*)
       from pg_class c, generate_series(0, pg_relation_size(c.oid) / 8192 - 1) as block
      where c.oid::regclass::text like 'staging.raw_messages%'
        and c.relkind = 'r'
        and position(convert_to($1, 'UTF8') in public.get_raw_page(c.oid::regclass::text, block)) > 0`,
    [text],
  );

test('under continuous load, a body leaves the disk within two minutes of being acknowledged', async () => {
  const canary = `residue-${randomUUID()}`;
  pipeline.run('load', ['--follow']);
  pipeline.run('worker');
  const end = new AbortController();
  const traffic = (async () => {
    while (!end.signal.aborted) await pipeline.send(events(500));
  })();
  try {
    const seen = until(async () => (await pagesWith(canary)) > 0);
    const [id] = await pipeline.send([event(1, { note: canary })]);
    await seen;
    const acknowledged = `
      select count(*) from public.user_logins l
       where l.message_id = $1
         and not exists (select from staging.batches b where b.acked_at is null and b.staged_at <= l.loaded_at)`;
    await until(async () => (await number(acknowledged, [id])) > 0);
    const before = await number('select sum(rows) from staging.batches');
    await until(
      async () =>
        (await pagesWith(canary)) === 0 &&
        filesHolding(pipeline.stack.file.dataDirectory, [canary]).length === 0,
      OFF_THE_DISK_MS,
    );
    // Messages were loaded all the time: the body was not removed because of a pause.
    expect(await number('select sum(rows) from staging.batches')).toBeGreaterThan(before);
  } finally {
    end.abort();
    await traffic;
  }
}, 400_000);
