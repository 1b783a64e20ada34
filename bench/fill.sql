-- Inserts logins of the last hour and vault entries in random order, so that the indexes are as in production. The
-- worker's connections call this before the measurement, because a new connection takes a page fault for each page of
-- shared memory that it touches for the first time.
create schema if not exists bench;
grant usage on schema bench to logins_worker;

create function bench.fill(logins bigint, entries bigint)
returns void
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into public.user_logins
    (user_id, create_date, message_id, device_type, masked_ip, masked_device_id, locale, app_version)
  select
    gen_random_uuid(), now() - random() * interval '1 hour', gen_random_uuid(), 'android', gen_random_uuid(),
    gen_random_uuid(), 'DE', '2.3.0'
  from generate_series(1, logins);

  insert into masking.vault (token, key_version, ciphertext)
  select gen_random_uuid(), 1, decode(repeat('00', 129), 'hex')
  from generate_series(1, entries);
$$;

grant execute on function bench.fill(bigint, bigint) to logins_worker;
