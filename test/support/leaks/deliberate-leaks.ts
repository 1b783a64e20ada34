/** For each place that the scan searches, a function that puts a value there. */
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { World } from './world.ts';

type Leak = (world: World, value: string) => Promise<unknown>;

const sql =
  (statement: (value: string) => string): Leak =>
  async ({ db }, value) =>
    db.superuser.query(statement(value));
const hexOf = (value: string): string => Buffer.from(value).toString('hex');
const inQuarantine = (reason: string, body: string) =>
  `insert into staging.quarantine values ('${randomUUID()}', now(), ${reason}, 1, ${body})`;

/** Creates a table that contains a value. The value is reversed in the statement, so that it is only in the table. */
const table = (name: string, kind = ''): Leak =>
  sql(
    (value) => `create ${kind} table public.${name} as
        select reverse('${[...value].reverse().join('')}') as v from generate_series(1, 100);
      analyze public.${name}`,
  );

/** By the name that the scan gives the place. */
export const DELIBERATE_LEAKS: readonly (readonly [string, Leak])[] = [
  ['server log', sql((value) => `do $$ begin raise log '%', '${hexOf(value)}'; end $$`)],
  ['plans in the server log', sql((value) => `select * from pg_class where relname = '${value}'`)],
  ['WAL', sql((value) => `select pg_logical_emit_message(false, 'planted', '${value}')`)],
  ['data directory', table('planted_in_files')],
  ['base backup', table('planted_in_backup')],
  ['temporary files', spill],
  ['pg_statistic', table('planted_in_statistics', 'unlogged')],
  ['pg_stats', table('planted_in_stats', 'unlogged')],
  ['pg_stat_statements', sql((value) => `select 1 /* ${value} */`)],
  ['pg_stat_activity', sql((value) => `select pg_sleep(0.2) /* ${value} */`)],
  [
    'pg_proc',
    sql(
      (value) => `create function public.planted() returns text language sql as $$ select '${value}' $$`,
    ),
  ],
  ['pg_rewrite', sql((value) => `create view public.planted as select '${value}' as v`)],
  ['pg_description', sql((value) => `comment on schema audit is '${value}'`)],
  [
    'pg_db_role_setting',
    sql((value) => `alter role local_worker set application_name = '${value.slice(0, 28)}'`),
  ],
  ['graphile_worker._private_jobs.payload', sql((value) => `select graphile_worker.add_job('t', json_build_object('v', '${value}'))`)],
  [
    'graphile_worker._private_jobs.last_error',
    sql((value) => `select graphile_worker.add_job('t'); update graphile_worker._private_jobs set last_error = '${value}'`),
  ],
  ['masking.vault.ciphertext', sql((value) => `insert into masking.vault values ('${randomUUID()}', 1, '${value}')`)],
  ['staging.quarantine.reason', sql((value) => inQuarantine(`encode('${value}', 'base64')`, `''`))],
  ['staging.quarantine.body', sql((value) => inQuarantine(`'r'`, `convert_to('${hexOf(value).toUpperCase()}', 'UTF8')`))],
  [
    'public.user_logins_default.locale',
    sql((value) => `insert into public.user_logins (user_id, create_date, message_id, locale) values ('u', 'epoch', '${randomUUID()}', '${value}')`),
  ],
  ['audit.events.details', sql((value) => `select audit.append('planted', jsonb_build_object('v', '${value}'))`)],
  ['command lines', async (world, value) => world.run('keys', 'custodian', ['list', value]).ended],
  [
    'output of commands',
    // The error message names a file that cannot be read.
    async (world, value) => world.run('keys', 'custodian', ['unseal'], { MASKING_KEK_FILE: `/nonexistent/${value}` }).ended,
  ],
  ['errors', async ({ db, recorder }, value) => recorder.codeOf(db.superuser.query(`select '${value}'::int`))],
]; // prettier-ignore

/** Starts a sort that does not fit into memory, and leaves it open during the scan. */
async function spill({ db }: World, value: string): Promise<void> {
  const client = await db.superuser.connect();
  await client.query(`begin; set local work_mem = '64kB';
    declare sorted cursor for select '${value}' || n as v from generate_series(1, 20000) n order by v; fetch 1 from sorted`);
  // Long enough for one scan.
  void sleep(60_000, undefined, { ref: false }).then(() => client.release(true));
}
