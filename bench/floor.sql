-- The floor: what moving the same staged rows on costs where nothing is masked. The table is user_logins with the
-- address and the device in the clear: partitioned alike, with the same key and the same indexes.
create schema bench;

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

create table bench.plain_logins_default partition of bench.plain_logins default;
create index plain_logins_ip on bench.plain_logins (ip);
create index plain_logins_device_id on bench.plain_logins (device_id);

-- In a function, so that its plan is made once: what the floor does not have to do shall not be counted as ours.
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
    -- Parsed once, and not once a column.
    offset 0
  ) e;
end
$$;
