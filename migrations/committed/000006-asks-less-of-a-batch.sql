--! Previous: sha1:f1fab6dd900faea5590953568528bca47b5eb4eb
--! Hash: sha1:8090e020280fb06d61c7b2a04aa386fe36c6a2cb
--! Message: asks less of a batch

-- The next migration: `--! include` lines, one for each changed file of fixtures/, in order (see docs/development.md).

--! Included tables/staging.quarantine.sql
-- Messages that cannot be loaded: why, and the body, encrypted. The reason names a field and a fault, never a value.
create table if not exists staging.quarantine (
  message_id uuid primary key,
  sent_at timestamptz not null,
  reason text not null,
  key_version integer not null,
  body bytea not null,
  quarantined_at timestamptz not null default now()
);

alter table staging.quarantine alter column body set statistics 0;
-- Ciphertext does not compress; trying costs time.
alter table staging.quarantine alter column body set storage external;
alter table staging.quarantine enable row level security;

-- A message is sent at one moment, however often it comes: masking asks whether any of a batch's time is here.
create index if not exists quarantine_sent_at on staging.quarantine (sent_at);

comment on table staging.quarantine is 'Messages that could not be loaded, their bodies encrypted';
comment on column staging.quarantine.reason is 'Field and fault, never a value';
comment on column staging.quarantine.key_version is 'Version of the body cipher key';
--! EndIncluded tables/staging.quarantine.sql
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
      m.receive_count,
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
      e.receive_count,
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
      t.receive_count,
      t.body,
      t.user_id,
      t.device_type,
      t.locale,
      t.app_version,
      masking.canonical_ip(t.ip) as ip,
      nullif(t.device_id, '') as device_id,
      case
        -- Nearly every event, told at a third of the cost: strings and nulls, none of them long. What this does not take
        -- may still be sound. In strict mode, one value that is neither string nor null makes the comparison unknown.
        when octet_length(t.user_id) between 1 and 128
          and coalesce(octet_length(t.ip), 0) <= 256
          and coalesce(octet_length(t.device_id), 0) <= 256
          and coalesce(octet_length(t.device_type), 0) <= 32
          and coalesce(octet_length(t.locale), 0) <= 32
          and coalesce(octet_length(t.app_version), 0) <= 64
          and not t.event @@ 'strict ($.* == "") is unknown' then null
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
      d.sent_at,
      d.receive_count,
      d.message_id,
      d.ip,
      d.device_id,
      d.user_id,
      d.device_type,
      d.locale,
      d.app_version,
      case when d.fault is not null then d.body end as body
    from digests d
  ),

  -- What decides how the batch goes in.
  batch as materialized (
    select
      count(*) as rows,
      count(*) filter (where m.fault is null) as sound_rows,
      -- SQS counts deliveries; what it gives out for the first time is hardly ever here already. One way for the whole
      -- batch: two ways would be two orders of rows, in which two batches could wait for each other.
      lenient or bool_or(m.receive_count is distinct from 1) as may_be_here,
      min(m.sent_at) as first_sent_at,
      max(m.sent_at) as last_sent_at
    from masked m
  ),

  -- Quarantined once, a message stays there until somebody replays it. However often it comes, it was sent at one
  -- moment, and most batches are of a time of which nothing is in quarantine.
  held as materialized (
    select m.message_id
    from masked m
    where m.fault is null
      and exists (
        select from staging.quarantine q
        where q.sent_at between (select b.first_sent_at from batch b) and (select b.last_sent_at from batch b)
        offset 0
      )
      and exists (select from staging.quarantine q where q.message_id = m.message_id offset 0)
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
      and not (select b.may_be_here from batch b)
      and m.message_id not in (select h.message_id from held h)
    order by m.user_id, m.sent_at, m.message_id
  ),

  -- Looking for a conflict before each row costs an eighth of the insert. Where one comes all the same, the insert
  -- above fails, and masking.mask_staged calls again with lenient: then every row comes this way.
  loaded_unless_here as (
    insert into public.user_logins
      (user_id, create_date, message_id, device_type, masked_ip, masked_device_id, locale, app_version)
    select
      m.user_id, m.sent_at, m.message_id, m.device_type, m.masked_ip, m.masked_device_id, m.locale, m.app_version
    from masked m
    where m.fault is null
      and (select b.may_be_here from batch b)
      and m.message_id not in (select h.message_id from held h)
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

  -- What is read here is written first, then what nobody reads, the last of it first: quarantine, logins, vault. So no
  -- two batches wait for each other in a circle. No manual says so; test/sql/idempotency.test.ts does.
  select
    b.rows,
    (select count(*) from refused),
    -- Without `on conflict` all that is sound goes in or the statement fails; returning it to be counted costs more.
    case
      when b.may_be_here then (select count(*) from loaded_unless_here)
      else b.sound_rows - (select count(*) from held)
    end
  into mask_rows.rows, mask_rows.quarantined, mask_rows.inserted
  from batch b;
end
$$;

comment on function masking.mask_rows(uuid, boolean, uuid) is 'Masks the rows of a batch and moves them on, in one statement';
revoke all on function masking.mask_rows(uuid, boolean, uuid) from public;
--! EndIncluded functions/masking.mask_rows.sql

-- It returns receipts alone.
drop function masking.mask_batch(uuid);
--! Included functions/masking.mask_batch.sql
-- masking.mask_batch(batch_id uuid) -> setof (receipt_handle text)
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
returns table (receipt_handle text)
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
    select m.receipt_handle
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
