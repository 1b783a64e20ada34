import type pg from 'pg';

/** The middle of a month relative to this one, by the database's clock, in milliseconds. */
export async function middleOfMonth(superuser: pg.Pool, offset: number): Promise<number> {
  const { rows } = await superuser.query<{ ms: string }>(
    `select extract(epoch from (date_trunc('month', now() at time zone 'UTC') + make_interval(months => $1, days => 14))
       at time zone 'UTC') * 1000 as ms`,
    [offset],
  );
  return Number(rows[0]!.ms);
}

/** Creates the partition of a past month. (The service creates partitions only for months ahead.) */
export async function makePartitionOf(superuser: pg.Pool, offset: number): Promise<string> {
  const { rows } = await superuser.query<{ name: string }>(
    `select format('user_logins_%s', to_char(date_trunc('month', now() at time zone 'UTC') + make_interval(months => $1), 'YYYY_MM')) as name`,
    [offset],
  );
  const { name } = rows[0]!;
  await superuser.query(`set timezone = 'UTC'; do $$ begin
    execute format('create table public.%I partition of public.user_logins for values from (%L) to (%L)', '${name}',
      date_trunc('month', now()) + make_interval(months => ${offset}),
      date_trunc('month', now()) + make_interval(months => ${offset + 1}));
    execute format('alter table public.%I owner to logins_owner', '${name}'); end $$; reset timezone`);
  return name;
}
