--! Previous: sha1:e669073053c1b2fd38ac16292a96cd927603ac50
--! Hash: sha1:a44d628d8d6a4cc1ccde6b161dc2f3deb824f894
--! Message: faster masking

-- The next migration: `--! include` lines, one for each changed file of fixtures/, in order (see docs/development.md).

--! Included functions/masking.read_body.sql
-- masking.read_body(body bytea) -> jsonb
--
-- what:    the event in a body, or null for a body that Postgres cannot hold as jsonb: no UTF-8, a NUL byte, no
--          JSON, \u0000, a lone surrogate, 1e999999, nesting beyond the stack
-- called:  by masking.mask_rows once a batch has failed as a whole
-- raises:  nothing that a body can cause. Each call is a sub-transaction, the only thing that stops every such
--          error: pg_input_is_valid and `is json` raise 54001 themselves on deep nesting.
create or replace function masking.read_body(body bytea)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
begin
  return convert_from(body, 'UTF8')::jsonb;
exception when others then
  if masking.is_fault_of_data(sqlstate) then
    return null;
  end if;
  raise;
end
$$;

comment on function masking.read_body(bytea) is 'The event in a body, or null where it cannot be read';
revoke all on function masking.read_body(bytea) from public;
--! EndIncluded functions/masking.read_body.sql
--! Included functions/masking.mask_rows.sql
-- masking.mask_rows(batch_id uuid, lenient boolean, only_message_id uuid default null)
--   -> (rows integer, inserted integer, quarantined integer)
--
-- what:    classifies, masks, encrypts what is new, and moves the rows of a batch (or one message of it) on, in one
--          statement
-- takes:   lenient: false casts all bodies and fails as a whole on one that cannot be cast, or on a message that is here
--          although SQS says that all of the batch is delivered for the first time: quick, and nearly always right; true
--          reads each body in a sub-transaction of its own, and leaves what is here as it is
-- called:  by masking.mask_staged and masking.mask_one_by_one
-- reads:   staging.raw_messages, masking.keys, masking.kek
-- writes:  masking.vault, public.user_logins, staging.quarantine
-- twice:   yes: what is there already stays as it is
-- raises:  ML001, ML002; without lenient whatever a body makes jsonb raise, and 23505
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
  ip_token_version integer;
  ip_token_key bytea;
  device_token_version integer;
  device_token_key bytea;
  -- pgcrypto takes passwords as text.
  ip_cipher_version integer;
  ip_password text;
  device_cipher_version integer;
  device_password text;
  body_cipher_version integer;
  body_password text;
  -- SQS counts deliveries; what it gives out for the first time is hardly ever here already. One way for the whole
  -- batch: two ways would be two orders of rows, in which two batches could wait for each other.
  may_be_here boolean := lenient or exists (
    select
    from staging.raw_messages m
    where m.batch_id = mask_rows.batch_id
      and m.receive_count is distinct from 1
  );
begin
  -- Into variables of their own: the field of a record is looked up anew for each row.
  select k.version, k.key
    into ip_token_version, ip_token_key
    from masking.active_key('token', 'ip') k;
  select k.version, k.key
    into device_token_version, device_token_key
    from masking.active_key('token', 'device_id') k;
  select k.version, encode(k.key, 'hex')
    into ip_cipher_version, ip_password
    from masking.active_key('cipher', 'ip') k;
  select k.version, encode(k.key, 'hex')
    into device_cipher_version, device_password
    from masking.active_key('cipher', 'device_id') k;
  select k.version, encode(k.key, 'hex')
    into body_cipher_version, body_password
    from masking.active_key('cipher', 'body') k;

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
      e.event ->> 'app_version' as app_version
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
        -- Nearly every event, told at half the cost: an object of strings and nulls, none of them long. What this does
        -- not take may still be sound.
        when octet_length(t.user_id) between 1 and 128
          and coalesce(octet_length(t.ip), 0) <= 256
          and coalesce(octet_length(t.device_id), 0) <= 256
          and coalesce(octet_length(t.device_type), 0) <= 32
          and coalesce(octet_length(t.locale), 0) <= 32
          and coalesce(octet_length(t.app_version), 0) <= 64
          and not t.event @? 'strict $.* ? (@.type() != "string" && @ != null)' then null
        when t.event is null then masking.fault_of_body(t.body)
        when jsonb_typeof(t.event) <> 'object' then 'body: not a JSON object'
        when not t.event ? 'user_id' then 'user_id: missing'
        when jsonb_typeof(t.event -> 'user_id') = 'null' then 'user_id: null'
        when jsonb_typeof(t.event -> 'user_id') <> 'string' then 'user_id: not a string'
        when t.user_id = '' then 'user_id: empty'
        when length(t.user_id) > 128 then 'user_id: longer than 128 characters'
        when jsonb_typeof(t.event -> 'ip') not in ('string', 'null') then 'ip: not a string'
        when octet_length(t.ip) > 256 then 'ip: longer than 256 bytes'
        when jsonb_typeof(t.event -> 'device_id') not in ('string', 'null') then 'device_id: not a string'
        when octet_length(t.device_id) > 256 then 'device_id: longer than 256 bytes'
        when jsonb_typeof(t.event -> 'device_type') not in ('string', 'null') then 'device_type: not a string'
        when length(t.device_type) > 32 then 'device_type: longer than 32 characters'
        when jsonb_typeof(t.event -> 'locale') not in ('string', 'null') then 'locale: not a string'
        when length(t.locale) > 32 then 'locale: longer than 32 characters'
        when jsonb_typeof(t.event -> 'app_version') not in ('string', 'null') then 'app_version: not a string'
        when length(t.app_version) > 64 then 'app_version: longer than 64 characters'
      end as fault
    from texts t
    offset 0
  ),

  digests as (
    select
      f.*,
      crypto.hmac(convert_to(f.ip, 'UTF8'), ip_token_key, 'sha256') as ip_digest,
      crypto.hmac(convert_to(f.device_id, 'UTF8'), device_token_key, 'sha256') as device_digest
    from fields f
    offset 0
  ),

  -- What most of its readers look at comes first.
  masked as materialized (
    select
      d.fault,
      masking.token_of(d.ip_digest, ip_token_version) as masked_ip,
      masking.token_of(d.device_digest, device_token_version) as masked_device_id,
      d.message_id,
      d.sent_at,
      d.ip,
      d.device_id,
      d.user_id,
      d.device_type,
      d.locale,
      d.app_version,
      case when d.fault is not null then d.body end as body
    from digests d
  ),

  -- In the order of tokens, so that two batches with the same new values wait for each other in the same order
  -- and cannot deadlock; sorted before it is asked what is known, so that the index's pages are come to in turn.
  vaulted as (
    insert into masking.vault (token, key_version, ciphertext)
    select
      v.token,
      case when v.is_ip then ip_cipher_version else device_cipher_version end,
      crypto.pgp_sym_encrypt_bytea(
        masking.padded(v.value),
        case when v.is_ip then ip_password else device_password end,
        masking.cipher_options()
      )
    from (
      select distinct on (each.token) each.*
      from (
        select m.masked_ip as token, m.ip as value, true as is_ip
        from masked m
        where m.fault is null and m.masked_ip is not null
        union all
        select m.masked_device_id, m.device_id, false
        from masked m
        where m.fault is null and m.masked_device_id is not null
        order by token
        offset 0
      ) each
      where not exists (select from masking.vault known where known.token = each.token offset 0)
      order by each.token
    ) v
    on conflict (token) do nothing
  ),

  -- The order is that of the primary key, so that two batches with the same messages wait for each other and cannot
  -- deadlock, and the index's pages are come to in turn.
  loaded as (
    insert into public.user_logins
      (user_id, create_date, message_id, device_type, masked_ip, masked_device_id, locale, app_version)
    select
      m.user_id, m.sent_at, m.message_id, m.device_type, m.masked_ip, m.masked_device_id, m.locale, m.app_version
    from masked m
    where m.fault is null
      and not may_be_here
      -- Quarantined once, it stays there until somebody replays it: a message is in one place.
      and not exists (select from staging.quarantine q where q.message_id = m.message_id offset 0)
    order by m.user_id, m.sent_at, m.message_id
    returning 1
  ),

  -- Looking for a conflict before each row costs an eighth of the insert. Where one comes all the same, the insert above
  -- fails, and masking.mask_staged calls again with lenient: then every row comes this way.
  loaded_unless_here as (
    insert into public.user_logins
      (user_id, create_date, message_id, device_type, masked_ip, masked_device_id, locale, app_version)
    select
      m.user_id, m.sent_at, m.message_id, m.device_type, m.masked_ip, m.masked_device_id, m.locale, m.app_version
    from masked m
    where m.fault is null
      and may_be_here
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
      body_cipher_version,
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
    (select count(*) from loaded) + (select count(*) from loaded_unless_here),
    (select count(*) from refused)
  into mask_rows.rows, mask_rows.inserted, mask_rows.quarantined;
end
$$;

comment on function masking.mask_rows(uuid, boolean, uuid) is 'Masks the rows of a batch and moves them on, in one statement';
revoke all on function masking.mask_rows(uuid, boolean, uuid) from public;
--! EndIncluded functions/masking.mask_rows.sql
--! Included functions/masking.mask_staged.sql
-- masking.mask_staged(batch_id uuid) -> (rows integer, inserted integer, quarantined integer)
--
-- what:    masks what is staged of a batch: all at once and quickly; where a message makes that fail, all at once with
--          each body read in a sub-transaction; where that fails too, message by message
-- called:  by masking.mask_batch and staging.replay
-- reads:   staging.raw_messages, masking.keys, masking.kek
-- writes:  masking.vault, public.user_logins, staging.quarantine
-- locks:   masking.keys and masking.vault against rotation and purges, until the transaction ends: whoever makes a
--          key or removes values waits for the batches under way, and later batches see what it did
-- twice:   yes
-- raises:  ML001 sealed; ML002 wrong key-encryption key; faults of the server
create or replace function masking.mask_staged(
  batch_id uuid,
  out rows integer,
  out inserted integer,
  out quarantined integer
)
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  counts record;
begin
  lock table masking.keys, masking.vault in row exclusive mode;

  begin
    counts := masking.mask_rows(batch_id, lenient => false);
  exception when others then
    if not masking.is_fault_of_data(sqlstate) then
      raise;
    end if;
    begin
      counts := masking.mask_rows(batch_id, lenient => true);
    exception when others then
      if not masking.is_fault_of_data(sqlstate) then
        raise;
      end if;
      counts := masking.mask_one_by_one(batch_id);
    end;
  end;

  rows := counts.rows;
  inserted := counts.inserted;
  quarantined := counts.quarantined;
end
$$;

comment on function masking.mask_staged(uuid) is 'Masks what is staged of a batch, isolating what cannot be masked';
revoke all on function masking.mask_staged(uuid) from public;
--! EndIncluded functions/masking.mask_staged.sql
