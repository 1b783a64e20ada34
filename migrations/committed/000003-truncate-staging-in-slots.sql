--! Previous: sha1:0b0ac4cb2438dd45c878739c07bc1e7381184293
--! Hash: sha1:e669073053c1b2fd38ac16292a96cd927603ac50
--! Message: truncate staging in slots

--! Included tables/staging.slots.sql
-- Which slot of staging.raw_messages takes what comes in: one row.
create table if not exists staging.slots (
  singleton boolean primary key default true check (singleton),
  current_slot integer not null default 0 check (current_slot between 0 and 2),
  opened_at timestamptz not null default now()
);

insert into staging.slots (singleton) values (true) on conflict do nothing;

comment on table staging.slots is 'The slot of staging.raw_messages that takes what comes in, and since when';
--! EndIncluded tables/staging.slots.sql
--! Included tables/staging.raw_messages.sql
-- Messages as SQS delivered them, in the clear, for the seconds between COPY and masking.
--
-- UNLOGGED keeps them out of WAL, base backups and standbys. A crash of Postgres empties the table and loses nothing:
-- what was not masked is still in SQS. Statistics are logged even of an unlogged table, so no column with content has
-- any. No constraint either, not even NOT NULL: its error message would print the row. Row-level security without a
-- policy keeps out pg_read_all_data, and because COPY refuses a table that has it, messages come in through the view
-- staging.inbox.
--
-- This table itself is empty: the rows are in its children, the slots. One takes what comes in, while what the others
-- held is truncated (staging.rotate_slots). DELETE would leave bodies on disk until a vacuum and a later row overwrite
-- them; TRUNCATE gives the file back at once, and costs nothing a row.
create unlogged table if not exists staging.raw_messages (
  batch_id uuid,
  message_id uuid,
  receipt_handle text,
  sent_at timestamptz,
  receive_count integer,
  body bytea
);

create index if not exists raw_messages_batch_id on staging.raw_messages (batch_id);

create unlogged table if not exists staging.raw_messages_0 () inherits (staging.raw_messages);
create unlogged table if not exists staging.raw_messages_1 () inherits (staging.raw_messages);
create unlogged table if not exists staging.raw_messages_2 () inherits (staging.raw_messages);

create index if not exists raw_messages_0_batch_id on staging.raw_messages_0 (batch_id);
create index if not exists raw_messages_1_batch_id on staging.raw_messages_1 (batch_id);
create index if not exists raw_messages_2_batch_id on staging.raw_messages_2 (batch_id);

-- Children have their own; so each is said again.
alter table staging.raw_messages
  alter column message_id set statistics 0,
  alter column receipt_handle set statistics 0,
  alter column body set statistics 0;
alter table staging.raw_messages_0
  alter column message_id set statistics 0,
  alter column receipt_handle set statistics 0,
  alter column body set statistics 0;
alter table staging.raw_messages_1
  alter column message_id set statistics 0,
  alter column receipt_handle set statistics 0,
  alter column body set statistics 0;
alter table staging.raw_messages_2
  alter column message_id set statistics 0,
  alter column receipt_handle set statistics 0,
  alter column body set statistics 0;

alter table staging.raw_messages enable row level security;
alter table staging.raw_messages_0 enable row level security;
alter table staging.raw_messages_1 enable row level security;
alter table staging.raw_messages_2 enable row level security;

-- Nothing is updated or deleted here, so there is nothing to vacuum.
alter table staging.raw_messages reset (
  autovacuum_vacuum_threshold,
  autovacuum_vacuum_scale_factor,
  autovacuum_vacuum_cost_delay
);

comment on table staging.raw_messages is 'Raw messages on their way to masking; unlogged, in slots that are truncated in turn';
comment on table staging.raw_messages_0 is 'Slot of staging.raw_messages';
comment on table staging.raw_messages_1 is 'Slot of staging.raw_messages';
comment on table staging.raw_messages_2 is 'Slot of staging.raw_messages';
--! EndIncluded tables/staging.raw_messages.sql
-- What is staged while this runs moves on to a slot.
with staged as (delete from only staging.raw_messages returning *)
insert into staging.raw_messages_0 select * from staged;
truncate only staging.raw_messages;
--! Included functions/masking.canonical_ip.sql
-- masking.canonical_ip(ip text) -> text
--
-- what:    the one way to write an address, so that equal addresses have equal tokens: IPv6 as host(inet) renders it, an
--          IPv4-mapped one as the IPv4 address; a network (1.2.3.0/24) or what is no address as it stands; null for null
--          and ''. IPv4 has one way to be written: inet takes more (010.1.2.3, 1.2.3.4., ::ffff:1.2), but 010 is 8 to
--          some who write it, and what was sent must not turn into something else.
-- takes:   ip: a column and not a constant: the planner inlines this function, and would cast a constant before it asks
--          whether it can, with an error that quotes it
-- called:  by masking.mask_rows, and by whatever looks an address up
-- raises:  nothing for a column: pg_input_is_valid asks before the cast
-- source:  RFC 5952 (IPv6 text), RFC 4291 2.5.5.2 (IPv4-mapped)
create or replace function masking.canonical_ip(ip text)
returns text
language sql
stable
parallel safe
as $$
  select case
    when ip = '' then null
    when strpos(ip, ':') = 0 or strpos(ip, '/') > 0 or not pg_input_is_valid(ip, 'inet') then ip
    when strpos(ip, '.') > 0 and ip !~ ':(0|[1-9][0-9]{0,2})(\.(0|[1-9][0-9]{0,2})){3}$' then ip
    when ip::inet <<= inet '::ffff:0:0/96' then substr(host(ip::inet), 8)
    else host(ip::inet)
  end
$$;

comment on function masking.canonical_ip(text) is 'An address in the one form that is masked';
revoke all on function masking.canonical_ip(text) from public;
--! EndIncluded functions/masking.canonical_ip.sql
--! Included functions/masking.mask_rows.sql
-- masking.mask_rows(batch_id uuid, lenient boolean, only_message_id uuid default null)
--   -> (rows integer, inserted integer, quarantined integer)
--
-- what:    classifies, masks, encrypts what is new, and moves the rows of a batch (or one message of it) on, in one
--          statement
-- takes:   lenient: false casts all bodies and fails as a whole on one that cannot be cast, which is quick and
--          nearly always right; true reads each body in a sub-transaction of its own
-- called:  by masking.mask_staged and masking.mask_one_by_one
-- reads:   staging.raw_messages, masking.keys, masking.kek
-- writes:  masking.vault, public.user_logins, staging.quarantine
-- twice:   yes: what is there already stays as it is
-- raises:  ML001, ML002; without lenient whatever a body makes jsonb raise
--
-- The plan must be the same whatever the tables' sizes are or were when it was made: a plan made for an empty vault
-- and kept while it fills was 150 times slower. So `offset 0` in a `not exists` keeps it a probe of an index for each
-- row, where the planner would make a join of it, and the settings leave no other way. A generic plan spares planning
-- and, unlike a custom one, never has a key folded into it. With work_mem well above the loader's largest batch, nothing
-- in the clear spills to a temporary file.
create or replace function masking.mask_rows(
  batch_id uuid,
  lenient boolean,
  only_message_id uuid default null,
  out rows integer,
  out inserted integer,
  out quarantined integer
)
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set jit = off
set work_mem = '256MB'
as $$
declare
  ip_token record := masking.active_key('token', 'ip');
  device_token record := masking.active_key('token', 'device_id');
  ip_cipher record := masking.active_key('cipher', 'ip');
  device_cipher record := masking.active_key('cipher', 'device_id');
  body_cipher record := masking.active_key('cipher', 'body');
  -- pgcrypto takes passwords as text.
  ip_password text := encode(ip_cipher.key, 'hex');
  device_password text := encode(device_cipher.key, 'hex');
  body_password text := encode(body_cipher.key, 'hex');
begin
  with

  -- Each `offset 0` keeps the planner from pulling a level up and computing its expressions once per use.
  events as (
    select
      m.message_id,
      m.sent_at,
      m.body,
      case when lenient then masking.read_body(m.body) else convert_from(m.body, 'UTF8')::jsonb end as event
    from staging.raw_messages m
    where m.batch_id = mask_rows.batch_id
      and (only_message_id is null or m.message_id = only_message_id)
    offset 0
  ),

  -- The fields as text, and the JSON types that tell a string from a number that looks like one.
  texts as (
    select
      e.message_id,
      e.sent_at,
      e.body,
      e.event,
      e.event ->> 'user_id' as user_id,
      e.event ->> 'ip' as ip,
      e.event ->> 'device_id' as device_id,
      e.event ->> 'device_type' as device_type,
      e.event ->> 'locale' as locale,
      e.event ->> 'app_version' as app_version,
      jsonb_typeof(e.event -> 'user_id') as user_id_type,
      jsonb_typeof(e.event -> 'ip') as ip_type,
      jsonb_typeof(e.event -> 'device_id') as device_id_type,
      jsonb_typeof(e.event -> 'device_type') as device_type_type,
      jsonb_typeof(e.event -> 'locale') as locale_type,
      jsonb_typeof(e.event -> 'app_version') as app_version_type
    from events e
    offset 0
  ),

  fields as (
    select
      t.message_id,
      t.sent_at,
      t.body,
      t.user_id,
      t.device_type,
      t.locale,
      t.app_version,
      masking.canonical_ip(t.ip) as ip,
      nullif(t.device_id, '') as device_id,
      case
        when t.event is null then masking.fault_of_body(t.body)
        when jsonb_typeof(t.event) <> 'object' then 'body: not a JSON object'
        when t.user_id_type is null then 'user_id: missing'
        when t.user_id_type = 'null' then 'user_id: null'
        when t.user_id_type <> 'string' then 'user_id: not a string'
        when t.user_id = '' then 'user_id: empty'
        when length(t.user_id) > 128 then 'user_id: longer than 128 characters'
        when t.ip_type not in ('string', 'null') then 'ip: not a string'
        when octet_length(t.ip) > 256 then 'ip: longer than 256 bytes'
        when t.device_id_type not in ('string', 'null') then 'device_id: not a string'
        when octet_length(t.device_id) > 256 then 'device_id: longer than 256 bytes'
        when t.device_type_type not in ('string', 'null') then 'device_type: not a string'
        when length(t.device_type) > 32 then 'device_type: longer than 32 characters'
        when t.locale_type not in ('string', 'null') then 'locale: not a string'
        when length(t.locale) > 32 then 'locale: longer than 32 characters'
        when t.app_version_type not in ('string', 'null') then 'app_version: not a string'
        when length(t.app_version) > 64 then 'app_version: longer than 64 characters'
      end as fault
    from texts t
    offset 0
  ),

  digests as (
    select
      f.*,
      crypto.hmac(convert_to(f.ip, 'UTF8'), ip_token.key, 'sha256') as ip_digest,
      crypto.hmac(convert_to(f.device_id, 'UTF8'), device_token.key, 'sha256') as device_digest
    from fields f
    offset 0
  ),

  masked as materialized (
    select
      d.message_id,
      d.sent_at,
      case when d.fault is not null then d.body end as body,
      d.user_id,
      d.device_type,
      d.locale,
      d.app_version,
      d.ip,
      d.device_id,
      d.fault,
      masking.token_of(d.ip_digest, ip_token.version) as masked_ip,
      masking.token_of(d.device_digest, device_token.version) as masked_device_id
    from digests d
  ),

  -- In the order of tokens, so that two batches with the same new values wait for each other in the same order
  -- and cannot deadlock.
  vaulted as (
    insert into masking.vault (token, key_version, ciphertext)
    select
      v.token,
      v.key_version,
      crypto.pgp_sym_encrypt_bytea(masking.padded(v.value), v.password, masking.cipher_options())
    from (
      select distinct on (each.token) each.*
      from (
        select m.masked_ip as token, m.ip as value, ip_cipher.version as key_version, ip_password as password
        from masked m
        where m.fault is null and m.masked_ip is not null
        union all
        select m.masked_device_id, m.device_id, device_cipher.version, device_password
        from masked m
        where m.fault is null and m.masked_device_id is not null
      ) each
      where not exists (select from masking.vault known where known.token = each.token offset 0)
      order by each.token
    ) v
    on conflict (token) do nothing
  ),

  loaded as (
    insert into public.user_logins
      (user_id, create_date, message_id, device_type, masked_ip, masked_device_id, locale, app_version)
    select
      m.user_id, m.sent_at, m.message_id, m.device_type, m.masked_ip, m.masked_device_id, m.locale, m.app_version
    from masked m
    where m.fault is null
      -- Quarantined once, it stays there until somebody replays it: a message is in one place.
      and not exists (select from staging.quarantine q where q.message_id = m.message_id offset 0)
    order by m.user_id, m.sent_at, m.message_id
    on conflict do nothing
    returning 1
  ),

  refused as (
    insert into staging.quarantine (message_id, sent_at, reason, key_version, body)
    select
      m.message_id,
      m.sent_at,
      m.fault,
      body_cipher.version,
      crypto.pgp_sym_encrypt_bytea(m.body, body_password, masking.cipher_options())
    from masked m
    where m.fault is not null
      and not exists (select from staging.quarantine q where q.message_id = m.message_id offset 0)
      -- Loaded once, before the rules became stricter, say, it stays loaded.
      and not exists (
        select
        from public.user_logins l
        where l.user_id = m.user_id and l.create_date = m.sent_at and l.message_id = m.message_id
        offset 0
      )
    order by m.message_id
    on conflict do nothing
    returning 1
  )

  select
    (select count(*) from masked),
    (select count(*) from loaded),
    (select count(*) from refused)
  into mask_rows.rows, mask_rows.inserted, mask_rows.quarantined;
end
$$;

comment on function masking.mask_rows(uuid, boolean, uuid) is 'Masks the rows of a batch and moves them on, in one statement';
revoke all on function masking.mask_rows(uuid, boolean, uuid) from public;
--! EndIncluded functions/masking.mask_rows.sql
--! Included functions/masking.mask_batch.sql
-- masking.mask_batch(batch_id uuid) -> setof (message_id uuid, receipt_handle text)
--
-- what:    masks a staged batch, writes the outcome to its row in the ledger, and returns the receipts with which
--          the messages may be deleted from SQS once this transaction is committed
-- called:  by the worker's task mask_batch, as logins_worker
-- reads:   staging.raw_messages, masking.keys, masking.kek
-- writes:  masking.vault, public.user_logins, staging.quarantine, staging.batches
-- twice:   yes: a masked batch returns its receipts again until it is closed; one whose rows a crash took is marked
--          lost and returns none, so that SQS delivers its messages again
-- raises:  ML001 sealed; ML002 wrong key-encryption key; ML012 no such batch; other SQLSTATEs for faults of the
--          server, with their details removed
create or replace function masking.mask_batch(batch_id uuid)
returns table (message_id uuid, receipt_handle text)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  batch staging.batches;
  counts record;
begin
  -- One at a time for a batch, whoever asks.
  select b.* into batch from staging.batches b where b.batch_id = mask_batch.batch_id for update;
  if not found then
    raise exception using errcode = 'ML012', message = 'no batch has this id';
  end if;
  if batch.acked_at is not null then
    return;
  end if;

  if not exists (select from staging.raw_messages m where m.batch_id = mask_batch.batch_id) then
    update staging.batches b
       set lost_at = now()
     where b.batch_id = mask_batch.batch_id
       and b.acked_at is null
       and b.lost_at is null;
    return;
  end if;

  if batch.masked_at is null then
    counts := masking.mask_staged(batch_id);

    update staging.batches b
       set masked_at = clock_timestamp(),
           inserted = counts.inserted,
           quarantined = counts.quarantined,
           duplicates = counts.rows - counts.inserted - counts.quarantined
     where b.batch_id = mask_batch.batch_id;
  end if;

  return query
    select m.message_id, m.receipt_handle
      from staging.raw_messages m
     where m.batch_id = mask_batch.batch_id;

exception when others then
  -- A server's error may print a row or a statement; its code says enough. Our own say nothing of anybody.
  if sqlstate like 'ML%' then
    raise;
  end if;
  raise exception using
    errcode = sqlstate,
    message = 'masking a batch failed';
end
$$;

comment on function masking.mask_batch(uuid) is 'Masks a staged batch and returns the receipts of its messages';
revoke all on function masking.mask_batch(uuid) from public;
grant execute on function masking.mask_batch(uuid) to logins_worker;
--! EndIncluded functions/masking.mask_batch.sql
--! Included functions/masking.open_values.sql
-- masking.open_values(tokens uuid[]) -> setof (token uuid, value text)
--
-- what:    the values of vault entries, in the clear, each checked: its token, computed again from the value, must be
--          the one it stands under
-- takes:   tokens: as they are in the vault now (masking.current_tokens)
-- called:  by unmask.reveal and rotation. STABLE, so that it sees the vault as the query does that found the tokens,
--          whatever a rotation commits meanwhile
-- reads:   masking.vault, masking.keys, masking.kek
-- keeps:   what is in the clear in memory (work_mem), off the disk
-- raises:  ML001 sealed; ML002 wrong key-encryption key; ML004 a ciphertext was changed or swapped
create or replace function masking.open_values(tokens uuid[])
returns table (token uuid, value text)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
set work_mem = '256MB'
as $$
begin
  return query
    with keys as materialized (
      select k.purpose, k.version, k.opened as key, encode(k.opened, 'hex') as password
      from (
        select k.purpose, k.version, masking.unwrapped(k.wrapped) as opened
        from masking.keys k
        where k.state <> 'destroyed'
        offset 0
      ) k
    )
    select v.token, masking.opened_value(v.token, v.ciphertext, c.password, t.version, t.key)
    from unnest(tokens) asked
    join masking.vault v on v.token = asked
    left join keys t on t.purpose = 'token' and t.version = get_byte(uuid_send(v.token), 0)
    left join keys c on c.purpose = 'cipher' and c.version = v.key_version;
end
$$;

comment on function masking.open_values(uuid[]) is 'Values of vault entries, in the clear and checked';
revoke all on function masking.open_values(uuid[]) from public;
--! EndIncluded functions/masking.open_values.sql
--! Included functions/masking.open_bodies.sql
-- masking.open_bodies(message_ids uuid[]) -> setof (message_id uuid, body bytea)
--
-- what:    the bodies of quarantined messages, in the clear
-- called:  by unmask.reveal, staging.replay and masking.forget_step
-- reads:   staging.quarantine, masking.keys, masking.kek
-- keeps:   what is in the clear in memory (work_mem), off the disk
-- raises:  ML001 sealed; ML002 wrong key-encryption key; ML004 a ciphertext was changed
create or replace function masking.open_bodies(message_ids uuid[])
returns table (message_id uuid, body bytea)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set work_mem = '256MB'
as $$
begin
  return query
    with keys as materialized (
      select k.version, encode(masking.unwrapped(k.wrapped), 'hex') as password
      from masking.keys k
      where k.purpose = 'cipher' and k.field = 'body' and k.state <> 'destroyed'
    )
    select q.message_id, crypto.pgp_sym_decrypt_bytea(q.body, k.password)
    from staging.quarantine q
    join keys k on k.version = q.key_version
    where q.message_id = any (message_ids);
exception when external_routine_invocation_exception then
  raise exception using
    errcode = 'ML004',
    message = 'a ciphertext in the quarantine was changed',
    hint = 'Restore staging.quarantine from a backup, and find out who changed it';
end
$$;

comment on function masking.open_bodies(uuid[]) is 'Bodies of quarantined messages, in the clear';
revoke all on function masking.open_bodies(uuid[]) from public;
--! EndIncluded functions/masking.open_bodies.sql
--! Included functions/unmask.reveal.sql
-- unmask.reveal(request_id uuid) -> setof (token uuid, value text)
--
-- what:    the values of a request: of each token asked for, and, where a rotation has replaced that token since, the
--          same value under its new token too, so that a join with user_logins finds it either way. For quarantined
--          messages token is the message's id, and value its body (as \x and hexadecimal digits where it is no text).
--          Values that were erased since have no row; a notice says how many. Writes an event, and a line to the
--          server's log that no rollback removes: the request's id and how many values, never one of them.
--          work_mem keeps what it returns in memory: a temporary file would hold it in the clear.
-- called:  by unmaskers
-- reads:   unmask.requests, unmask.approvals, audit.events, masking.vault, masking.keys, masking.kek, staging.quarantine
-- writes:  audit.events
-- twice:   yes, until the request expires; each time is on the record
-- raises:  ML001 sealed; ML004 a ciphertext was changed or swapped; ML101 no such request; ML102 somebody else's;
--          ML103 not committed yet; ML104 expired; ML105 not approved; ML107 all of it has been erased; ML108 changed;
--          ML110 a request to find
create or replace function unmask.reveal(request_id uuid)
returns table (token uuid, value text)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set work_mem = '256MB'
as $$
declare
  request unmask.requests := unmask.granted(reveal.request_id);
  shown bigint;
begin
  if request.kind = 'find' then
    raise exception using
      errcode = 'ML110',
      message = 'this request is to find a value, not to reveal one',
      hint = format('Run: select * from unmask.find(%L, …)', request.subject);
  elsif request.kind = 'body' then
    return query
      select b.message_id, masking.body_as_text(b.body) from masking.open_bodies(request.tokens) b;
    get diagnostics shown = row_count;
  else
    return query
      with current as materialized (
        select c.asked, c.token from masking.current_tokens(request.tokens) c
      ),
      opened as materialized (
        select o.token, o.value from masking.open_values(array(select distinct c.token from current c)) o
      )
      select c.asked, o.value from current c join opened o on o.token = c.token
      union
      select o.token, o.value from opened o;
    select count(distinct c.asked) into shown from masking.current_tokens(request.tokens) c;
  end if;

  if shown = 0 then
    raise exception using errcode = 'ML107', message = 'all of these values have been erased';
  elsif shown < cardinality(request.tokens) then
    raise notice '% of % values have been erased', cardinality(request.tokens) - shown, cardinality(request.tokens);
  end if;
  raise log 'masked-logins: % revealed % values of request %', session_user, shown, request.request_id;
  perform audit.append('reveal', jsonb_build_object('request_id', request.request_id, 'values', shown));
end
$$;

comment on function unmask.reveal(uuid) is 'The values of a committed request';
revoke all on function unmask.reveal(uuid) from public;
grant execute on function unmask.reveal(uuid) to logins_unmasker;
--! EndIncluded functions/unmask.reveal.sql
--! Included functions/staging.receive_message.sql
-- staging.receive_message() -> trigger, and the trigger that fills staging.raw_messages
--
-- what:    puts a row copied into staging.inbox into the open slot of staging.raw_messages
-- called:  by COPY staging.inbox, as logins_loader
-- reads:   staging.slots
-- writes:  staging.raw_messages
-- twice:   no: a row a call; staging.submit_batch counts them
-- raises:  ML014 a column is null
create or replace function staging.receive_message()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
begin
  if new.batch_id is null or new.message_id is null or new.receipt_handle is null
     or new.sent_at is null or new.receive_count is null or new.body is null then
    raise exception using errcode = 'ML014', message = 'a staged message has no null column';
  end if;
  case (select s.current_slot from staging.slots s)
    when 0 then
      insert into staging.raw_messages_0 (batch_id, message_id, receipt_handle, sent_at, receive_count, body)
      values (new.batch_id, new.message_id, new.receipt_handle, new.sent_at, new.receive_count, new.body);
    when 1 then
      insert into staging.raw_messages_1 (batch_id, message_id, receipt_handle, sent_at, receive_count, body)
      values (new.batch_id, new.message_id, new.receipt_handle, new.sent_at, new.receive_count, new.body);
    else
      insert into staging.raw_messages_2 (batch_id, message_id, receipt_handle, sent_at, receive_count, body)
      values (new.batch_id, new.message_id, new.receipt_handle, new.sent_at, new.receive_count, new.body);
  end case;
  return new;
end
$$;

comment on function staging.receive_message() is 'Puts a row copied into staging.inbox into staging.raw_messages';
revoke all on function staging.receive_message() from public;

create or replace trigger receive_message
instead of insert on staging.inbox
for each row execute function staging.receive_message();
--! EndIncluded functions/staging.receive_message.sql
--! Included functions/staging.close_batch.sql
-- staging.close_batch(batch_id uuid) -> void
--
-- what:    notes that a masked batch was acknowledged; staging.rotate_slots then takes its rows off the disk
-- called:  by the worker's task mask_batch after the batch's messages were deleted from SQS
-- writes:  staging.batches
-- twice:   yes
-- raises:  ML013 the batch has not been masked: closing it would lose its rows
create or replace function staging.close_batch(batch_id uuid)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update staging.batches b
     set acked_at = coalesce(b.acked_at, now())
   where b.batch_id = close_batch.batch_id
     and b.masked_at is not null;
  if not found then
    raise exception using errcode = 'ML013', message = 'the batch has not been masked';
  end if;
end
$$;

comment on function staging.close_batch(uuid) is 'Notes that a batch was acknowledged';
revoke all on function staging.close_batch(uuid) from public;
grant execute on function staging.close_batch(uuid) to logins_worker;
--! EndIncluded functions/staging.close_batch.sql
--! Included functions/staging.rotate_slots.sql
-- staging.rotate_slots() -> integer
--
-- what:    takes bodies that have served their purpose off the disk: opens the next slot of staging.raw_messages for what
--          comes in once the present one is 20 seconds old, and truncates the others, whose batches are acknowledged by
--          then. Rows of batches that are not are moved to the open slot. Returns how many slots it truncated.
-- called:  by every worker, every 10 seconds; and by whoever wants staging emptied now
-- reads:   staging.batches
-- writes:  staging.raw_messages, staging.slots
-- locks:   a slot, for as long as it takes to truncate it; where that cannot be had within a second, the next call does it
-- twice:   yes
create or replace function staging.rotate_slots()
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '1s'
as $$
declare
  turn staging.slots;
  slot regclass;
  open_slot regclass;
  is_needed boolean;
  truncated integer := 0;
begin
  -- One worker at a time.
  select s.* into turn from staging.slots s for update skip locked;
  if not found then
    return 0;
  end if;

  open_slot := format('staging.raw_messages_%s', turn.current_slot)::regclass;
  -- By its size: what a transaction that was rolled back left in the file is to go as well.
  if pg_relation_size(open_slot) > 0 and turn.opened_at <= clock_timestamp() - interval '20 seconds' then
    update staging.slots
       set current_slot = (turn.current_slot + 1) % 3, opened_at = clock_timestamp();
    -- Whoever is copying now goes on in the slot it has begun with: that one has its turn at the next call.
    return 0;
  end if;

  for slot in
    select i.inhrelid::regclass
      from pg_inherits i
     where i.inhparent = 'staging.raw_messages'::regclass
       and i.inhrelid <> open_slot
       and pg_relation_size(i.inhrelid) > 0
  loop
    execute format(
      'select coalesce(bool_and(exists (
         select from staging.batches b
          where b.batch_id = m.batch_id and b.acked_at is null and b.lost_at is null
       )), false)
         from (select distinct s.batch_id from %s s) m', slot
    ) into is_needed;
    continue when is_needed;

    execute format('lock table %s in access exclusive mode', slot);
    execute format(
      'insert into %s
       select m.*
         from %s m
         join staging.batches b on b.batch_id = m.batch_id
        where b.acked_at is null and b.lost_at is null', open_slot, slot
    );
    execute format('truncate %s', slot);
    truncated := truncated + 1;
  end loop;
  return truncated;
exception when lock_not_available then
  return 0;
end
$$;

comment on function staging.rotate_slots() is 'Truncates the slots of raw_messages whose batches are acknowledged';
revoke all on function staging.rotate_slots() from public;
grant execute on function staging.rotate_slots() to logins_worker;
--! EndIncluded functions/staging.rotate_slots.sql
--! Included functions/staging.replay.sql
-- staging.replay(message_ids uuid[]) -> (rows integer, inserted integer, quarantined integer)
--
-- what:    takes messages out of quarantine and masks them again, in this transaction: after a release that understands
--          them, say. What still cannot be loaded goes back.
-- called:  by custodians and workers
-- reads:   staging.quarantine, masking.keys, masking.kek
-- writes:  staging.quarantine, staging.raw_messages, public.user_logins, masking.vault,
--          staging.batches, audit.events
-- twice:   yes: what is not in quarantine is left out
-- raises:  ML001 sealed; ML004 a ciphertext was changed; 54000 more than 10000 messages at once
create or replace function staging.replay(
  message_ids uuid[],
  out rows integer,
  out inserted integer,
  out quarantined integer
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
  replay_batch_id uuid := gen_random_uuid();
  counts record;
begin
  if cardinality(message_ids) > 10000 then
    raise exception using errcode = '54000', message = 'replay takes up to 10000 messages at once';
  end if;

  insert into staging.inbox (batch_id, message_id, receipt_handle, sent_at, receive_count, body)
  select replay_batch_id, q.message_id, '', q.sent_at, 0, b.body
  from masking.open_bodies(message_ids) b
  join staging.quarantine q on q.message_id = b.message_id;
  delete from staging.quarantine q using staging.raw_messages m
   where m.batch_id = replay_batch_id
     and q.message_id = m.message_id;

  counts := masking.mask_staged(replay_batch_id);
  rows := counts.rows;
  inserted := counts.inserted;
  quarantined := counts.quarantined;

  if rows > 0 then
    insert into staging.batches (batch_id, rows, masked_at, acked_at, inserted, duplicates, quarantined)
    values (
      replay_batch_id, replay.rows, clock_timestamp(), clock_timestamp(),
      replay.inserted, replay.rows - replay.inserted - replay.quarantined, replay.quarantined
    );
  end if;
  perform audit.append(
    'replay',
    jsonb_build_object('messages', rows, 'loaded', inserted, 'quarantined', quarantined)
  );
end
$$;

comment on function staging.replay(uuid[]) is 'Puts quarantined messages through masking again';
revoke all on function staging.replay(uuid[]) from public;
grant execute on function staging.replay(uuid[]) to logins_custodian, logins_worker;
--! EndIncluded functions/staging.replay.sql
