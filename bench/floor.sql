-- The floor: moving the same staged rows without masking. The table is like user_logins, with the same partitions, key
-- and indexes, but with the address and the device in the clear.
create schema if not exists bench;

create table bench.plain_logins (
  user_id text not null,
  create_date timestamptz not null,
  message_id uuid not null,
  device_type text,
  ip text,
  device_id text,
  locale text,
  app_version text,
  loaded_at timestamptz not null default now(),
  primary key (user_id, create_date, message_id)
)
partition by range (create_date);

do $$
declare
  partition record;
begin
  for partition in
    select c.relname, pg_get_expr(c.relpartbound, c.oid) as bound
      from pg_inherits i
      join pg_class c on c.oid = i.inhrelid
     where i.inhparent = 'public.user_logins'::regclass
  loop
    execute format('create table bench.%I partition of bench.plain_logins %s', partition.relname, partition.bound);
  end loop;
end
$$;

create index plain_logins_ip on bench.plain_logins (ip);
create index plain_logins_device_id on bench.plain_logins (device_id);

-- A function, so that it is planned only once. Planning each time would make the floor slower than the minimum.
create function bench.load_plain(batch_id uuid)
returns void
language plpgsql
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
begin
  insert into bench.plain_logins
    (user_id, create_date, message_id, device_type, ip, device_id, locale, app_version)
  select
    e.event ->> 'user_id', e.sent_at, e.message_id, e.event ->> 'device_type', e.event ->> 'ip',
    e.event ->> 'device_id', e.event ->> 'locale', e.event ->> 'app_version'
  from (
    select m.sent_at, m.message_id, convert_from(m.body, 'UTF8')::jsonb as event
    from staging.raw_messages m
    where m.batch_id = load_plain.batch_id
    -- Parses each body once, instead of once per column.
    offset 0
  ) e;
end
$$;

-- Inserts as many rows as user_logins has, so that the indexes of both tables have the same depth.
create function bench.fill_plain()
returns void
language sql
as $$
  insert into bench.plain_logins
    (user_id, create_date, message_id, device_type, ip, device_id, locale, app_version)
  select
    user_id, create_date, message_id, device_type, left(masked_ip::text, 15), left(masked_device_id::text, 11), locale,
    app_version
  from public.user_logins;
$$;
