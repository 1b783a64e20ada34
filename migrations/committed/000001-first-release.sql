--! Previous: -
--! Hash: sha1:007b3f334b5d7d79746e7144f1316037f4b67b82
--! Message: first release

-- All objects of masked-logins, in an order in which they can be created and read.
--
-- Login events arrive from SQS with an IP address and a device id. This database stores each event as a row of
-- public.user_logins, with tokens in place of these two values. The values themselves are stored encrypted.
--
--   1. A loader copies messages into staging, in the clear and unlogged. It cannot read them back.
--   2. masking.mask_batch() masks a batch in one transaction. Rows go to public.user_logins, new values, encrypted, to
--      masking.vault, and messages that cannot be loaded, encrypted, to staging.quarantine.
--   3. A worker deletes the messages from SQS and closes the batch. Staging is truncated.
--   4. A person who may see values requests them in schema unmask. The request is committed, with an event in the audit
--      log, before anything is shown.
--
-- Most roles have no privileges on tables. They call functions that run as logins_owner and check who calls. Data keys
-- never leave the database; they are stored encrypted under the key-encryption key, which is in an unlogged table.
--
-- `migrate` creates roles, schemas and graphile-worker's schema before this. `npm test` checks that a database made from
-- this file equals one made from migrations/committed/.

-- From here on, PUBLIC may not execute new functions.
--! Included grants/default_privileges.sql
-- By default, PUBLIC may execute every new function. Only this form, without a schema, revokes that for functions that
-- logins_owner creates later; `in schema … revoke` has no effect on it (ALTER DEFAULT PRIVILEGES).
alter default privileges for role logins_owner revoke execute on functions from public;
--! EndIncluded grants/default_privileges.sql

-- Results: the masked logins, their values encrypted, and the messages that could not be loaded.
--! Included tables/public.user_logins.sql
-- The logins, masked, for analysts.
--
-- create_date is the time at which SQS received the message. It is the same for each redelivery, so the primary key makes
-- loading idempotent. There is no CHECK, because its error message would contain the row.
create table if not exists public.user_logins (
  user_id text not null,
  create_date timestamptz not null,
  message_id uuid not null,
  device_type text,
  masked_ip uuid,
  masked_device_id uuid,
  locale text,
  app_version text,
  loaded_at timestamptz not null default now(),
  primary key (user_id, create_date, message_id)
)
partition by range (create_date);

-- Accepts rows for which there is no monthly partition, so that no login is refused because of its date.
create table if not exists public.user_logins_default partition of public.user_logins default;

-- Analysts look for logins with the same device or address, and erasures for logins that still need a value.
create index if not exists user_logins_masked_ip on public.user_logins (masked_ip);
create index if not exists user_logins_masked_device_id on public.user_logins (masked_device_id);

comment on table public.user_logins is 'Login events with ip and device_id masked, one row for each message';
comment on column public.user_logins.user_id is 'Who logged in, as in the event';
comment on column public.user_logins.create_date is 'When SQS received the message (SentTimestamp)';
comment on column public.user_logins.message_id is 'Id of the SQS message, or a UUID derived from it';
comment on column public.user_logins.masked_ip is 'Token of the address; equal addresses have equal tokens; null if the event has none';
comment on column public.user_logins.masked_device_id is 'Token of the device id; equal ids have equal tokens; null if the event has none';
comment on column public.user_logins.app_version is 'The version string, as in the event';
comment on column public.user_logins.loaded_at is 'When the row was masked and loaded';
--! EndIncluded tables/public.user_logins.sql
--! Included tables/public.user_logins_compat.sql
-- user_logins in the shape of its older definition, for consumers that still need it: app_version is the major version,
-- create_date a day in UTC. The pattern says [0-9], because under ICU collations a class of digits also matches digits
-- that integer does not accept.
create or replace view public.user_logins_compat
with (security_barrier) as
select
  l.user_id::varchar(128) as user_id,
  l.device_type::varchar(32) as device_type,
  l.masked_ip::varchar(256) as masked_ip,
  l.masked_device_id::varchar(256) as masked_device_id,
  l.locale::varchar(32) as locale,
  substring(l.app_version from '^[[:space:]]*[vV]?([0-9]{1,9})(?![0-9])')::integer as app_version,
  (l.create_date at time zone 'UTC')::date as create_date
from public.user_logins l;

comment on view public.user_logins_compat is 'user_logins in its older shape: major version, day, tokens as text';
--! EndIncluded tables/public.user_logins_compat.sql
--! Included functions/staging.refuse_write.sql
-- staging.refuse_write() -> trigger, and the trigger on public.user_logins
--
-- what:    refuses direct writes to user_logins to all but its owner. Members of pg_write_all_data have the privilege.
--          The owner may write, unlike in audit.refuse_change.
-- called:  by the trigger, once a statement
-- writes:  nothing
-- twice:   yes
-- raises:  42501 always
create or replace function staging.refuse_write()
returns trigger
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using
    errcode = '42501',
    message = format('only functions of masked-logins may write to %I.%I', tg_table_schema, tg_table_name);
end
$$;

comment on function staging.refuse_write() is 'Refuses direct writes to a table to all but its owner';
revoke all on function staging.refuse_write() from public;

-- For each statement, not for each row, so that it costs nothing. A write through a view is a statement on the table.
create or replace trigger refuse_write before insert or update or delete or truncate on public.user_logins
for each statement when (not pg_has_role(current_user, 'logins_owner', 'usage'))
execute function staging.refuse_write();
--! EndIncluded functions/staging.refuse_write.sql
--! Included tables/masking.vault.sql
-- The masked values, encrypted: one row for each distinct value, with its token as the key.
create table if not exists masking.vault (
  token uuid primary key,
  key_version integer not null,
  ciphertext bytea not null
);

alter table masking.vault alter column ciphertext set statistics 0;
-- Ciphertext does not compress.
alter table masking.vault alter column ciphertext set storage external;

comment on table masking.vault is 'Ciphertext of each distinct value';
comment on column masking.vault.token is 'The first byte is the version of the token key';
comment on column masking.vault.key_version is 'Version of the cipher key';
comment on column masking.vault.ciphertext is 'OpenPGP message (RFC 4880): AES-256, padded plaintext, integrity-protected';
--! EndIncluded tables/masking.vault.sql
--! Included tables/staging.quarantine.sql
-- Messages that cannot be loaded: the body, encrypted, and a reason, which names a field and a fault, never a value.
create table if not exists staging.quarantine (
  message_id uuid primary key,
  sent_at timestamptz not null,
  reason text not null,
  key_version integer not null,
  body bytea not null,
  quarantined_at timestamptz not null default now()
);

alter table staging.quarantine alter column body set statistics 0;
-- Ciphertext does not compress, and trying costs time.
alter table staging.quarantine alter column body set storage external;

-- Masking checks whether any message of a batch's time is here. Redeliveries of a message have the same sent_at.
create index if not exists quarantine_sent_at on staging.quarantine (sent_at);

comment on table staging.quarantine is 'Messages that could not be loaded, with encrypted bodies';
comment on column staging.quarantine.reason is 'A field and a fault, never a value';
comment on column staging.quarantine.key_version is 'Version of the cipher key for bodies';
--! EndIncluded tables/staging.quarantine.sql

-- Loading: a batch of messages is copied into staging, entered in the ledger, and gets a job.
--! Included tables/staging.slots.sql
-- The slots of staging.raw_messages: one is open and receives rows, the others are closed and wait to be emptied
-- (staging.recycle_slots). Row-level security without a policy keeps out members of pg_write_all_data, who could lock
-- the open slot's row and so stop recycling.
create table if not exists staging.slots (
  slot integer primary key check (slot between 0 and 2),
  is_open boolean not null,
  opened_at timestamptz not null default now(),
  closed_at timestamptz,
  tried_at timestamptz
);

create unique index if not exists slots_one_open on staging.slots (is_open) where is_open;

alter table staging.slots enable row level security;

insert into staging.slots (slot, is_open) values (0, true), (1, false), (2, false) on conflict do nothing;

comment on table staging.slots is 'Slots of staging.raw_messages: which one is open, and since when the others wait';
comment on column staging.slots.opened_at is 'Nothing in the slot is older';
comment on column staging.slots.closed_at is 'Since when the slot receives no rows; null while it is open';
comment on column staging.slots.tried_at is 'When it last could not be emptied because of a lock; null otherwise';
--! EndIncluded tables/staging.slots.sql
--! Included tables/staging.raw_messages.sql
-- Messages as SQS delivered them, in the clear, for the seconds between COPY and masking.
--
-- UNLOGGED, so that they are not in WAL, base backups or standbys. A crash of Postgres empties the table, and nothing is
-- lost, because messages that were not masked are still in SQS. Statistics are logged even for an unlogged table, so
-- columns with content have none. There is no constraint, not even NOT NULL, because its error message would contain the
-- row. Row-level security without a policy keeps out members of pg_read_all_data. COPY refuses a table that has it, so
-- messages are inserted through the view staging.inbox.
--
-- The columns of a row that does not fit into a page are stored in a TOAST table, which has no row-level security, so
-- members of pg_read_all_data can read it. Therefore a body either fits into its row (storage main), or is encrypted
-- under a key of its own in body_key, which always stays in the row (storage plain).
--
-- The table itself is empty. Its rows are in its children, the slots. One slot receives rows while the others are
-- truncated (staging.recycle_slots). DELETE would leave bodies on the disk until a vacuum and a later row overwrite
-- them. TRUNCATE frees the file at once, and costs nothing per row.
create unlogged table if not exists staging.raw_messages (
  batch_id uuid,
  message_id uuid,
  receipt_handle text,
  sent_at timestamptz,
  receive_count integer,
  body bytea,
  body_key bytea
);

create index if not exists raw_messages_batch_id on staging.raw_messages (batch_id);

create unlogged table if not exists staging.raw_messages_0 () inherits (staging.raw_messages);
create unlogged table if not exists staging.raw_messages_1 () inherits (staging.raw_messages);
create unlogged table if not exists staging.raw_messages_2 () inherits (staging.raw_messages);

create index if not exists raw_messages_0_batch_id on staging.raw_messages_0 (batch_id);
create index if not exists raw_messages_1_batch_id on staging.raw_messages_1 (batch_id);
create index if not exists raw_messages_2_batch_id on staging.raw_messages_2 (batch_id);

-- Applies to the slots as well.
alter table staging.raw_messages
  alter column message_id set statistics 0,
  alter column receipt_handle set statistics 0,
  alter column body set statistics 0,
  alter column body_key set statistics 0,
  alter column body set storage main,
  alter column body_key set storage plain;

-- Nothing is updated or deleted here, so there is nothing to vacuum.
alter table staging.raw_messages reset (
  autovacuum_vacuum_threshold,
  autovacuum_vacuum_scale_factor,
  autovacuum_vacuum_cost_delay
);

comment on table staging.raw_messages is 'Raw messages until they are masked; unlogged, in slots that are truncated in turn';
comment on column staging.raw_messages.body_key is 'Key that decrypts the body if it is too long for its row (masking.staged_body)';
comment on table staging.raw_messages_0 is 'Slot of staging.raw_messages';
comment on table staging.raw_messages_1 is 'Slot of staging.raw_messages';
comment on table staging.raw_messages_2 is 'Slot of staging.raw_messages';
--! EndIncluded tables/staging.raw_messages.sql
--! Included tables/staging.inbox.sql
-- Receives messages: the loader COPYs into this view, and nothing can be read from it.
--
-- COPY FROM refuses a table with row-level security ("COPY FROM not supported with row-level security"), but not a view
-- with an INSTEAD OF trigger. The trigger is called once for each row. So a row contains many messages of a batch, one
-- at each position of the arrays, and the detour costs next to nothing (docs/performance.md).
--
-- The view refers to no table, because LOCK TABLE on a view also locks the tables that it refers to: a login that may
-- insert here could lock staging.raw_messages.
create or replace view staging.inbox as
select
  null::uuid as batch_id,
  null::uuid[] as message_ids,
  null::text[] as receipt_handles,
  null::timestamptz[] as sent_ats,
  null::integer[] as receive_counts,
  null::bytea[] as bodies
where false;

comment on view staging.inbox is 'Inbox for raw messages: COPY staging.inbox FROM STDIN (FORMAT binary); shows nothing';
--! EndIncluded tables/staging.inbox.sql
--! Included functions/masking.require_member.sql
-- masking.require_member(variadic roles name[]) -> void
--
-- what:    refuses a login that is not a member of any of these roles. A grant on an inbox is not enough, because
--          members of pg_write_all_data may insert into any table.
-- called:  by the triggers of the inboxes
-- reads:   the catalogs
-- twice:   yes
-- raises:  42501 the login (session_user) is not a member of any of them
create or replace function masking.require_member(variadic roles name[])
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  role_name name;
begin
  foreach role_name in array roles loop
    if pg_has_role(session_user, role_name, 'member') then
      return;
    end if;
  end loop;
  raise exception using
    errcode = '42501',
    message = format('only members of %s may do this', array_to_string(roles, ', ')),
    hint = format('As the migrating login: grant %I to %I', roles[1], session_user);
end
$$;

comment on function masking.require_member(name[]) is 'Refuses a login that is not a member of any of these roles';
revoke all on function masking.require_member(name[]) from public;
--! EndIncluded functions/masking.require_member.sql
--! Included functions/staging.receive_messages.sql
-- staging.receive_messages() -> trigger, and the trigger that fills staging.raw_messages
--
-- what:    stores the messages of a row that was copied into staging.inbox in the open slot of staging.raw_messages.
--          work_mem is well above the largest batch of a loader, so that nothing in the clear is written to a temporary
--          file.
-- called:  by COPY staging.inbox, as logins_loader; by staging.replay and masking.probe
-- reads:   staging.slots
-- writes:  staging.raw_messages
-- twice:   no: the same messages are stored again; staging.submit_batch counts them
-- raises:  42501 not a member of a role that may load; ML014 the arrays differ in length, or a value is null
create or replace function staging.receive_messages()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set work_mem = '256MB'
as $$
declare
  messages integer := cardinality(new.message_ids);
begin
  -- Custodians and workers call staging.replay, which inserts here.
  perform masking.require_member('logins_loader', 'logins_worker', 'logins_custodian');
  if (
    new.batch_id is not null
    and cardinality(new.receipt_handles) = messages
    and cardinality(new.sent_ats) = messages
    and cardinality(new.receive_counts) = messages
    and cardinality(new.bodies) = messages
    and array_position(new.message_ids, null) is null
    and array_position(new.receipt_handles, null) is null
    and array_position(new.sent_ats, null) is null
    and array_position(new.receive_counts, null) is null
    and array_position(new.bodies, null) is null
  ) is not true then
    raise exception using
      errcode = 'ML014',
      message = 'a row of staging.inbox must have arrays of equal length, and no nulls';
  end if;

  -- A body that does not fit into its row is encrypted under a key of its own (tables/staging.raw_messages.sql).
  --
  -- The three statements differ only in their table. A static INSERT keeps its plan, and here every message passes;
  -- EXECUTE would plan again for each row of the inbox.
  case (select s.slot from staging.slots s where s.is_open)
    when 0 then
      insert into staging.raw_messages_0 (batch_id, message_id, receipt_handle, sent_at, receive_count, body, body_key)
      select
        new.batch_id, m.id, m.receipt, m.sent_at, m.count,
        case when m.key is null then m.body else crypto.encrypt(m.body, m.key, 'aes') end,
        m.key
      from (
        select m.*, case when octet_length(m.body) > 7000 then crypto.gen_random_bytes(32) end as key
        from unnest(new.message_ids, new.receipt_handles, new.sent_ats, new.receive_counts, new.bodies)
          m (id, receipt, sent_at, count, body)
        offset 0
      ) m;
    when 1 then
      insert into staging.raw_messages_1 (batch_id, message_id, receipt_handle, sent_at, receive_count, body, body_key)
      select
        new.batch_id, m.id, m.receipt, m.sent_at, m.count,
        case when m.key is null then m.body else crypto.encrypt(m.body, m.key, 'aes') end,
        m.key
      from (
        select m.*, case when octet_length(m.body) > 7000 then crypto.gen_random_bytes(32) end as key
        from unnest(new.message_ids, new.receipt_handles, new.sent_ats, new.receive_counts, new.bodies)
          m (id, receipt, sent_at, count, body)
        offset 0
      ) m;
    else
      insert into staging.raw_messages_2 (batch_id, message_id, receipt_handle, sent_at, receive_count, body, body_key)
      select
        new.batch_id, m.id, m.receipt, m.sent_at, m.count,
        case when m.key is null then m.body else crypto.encrypt(m.body, m.key, 'aes') end,
        m.key
      from (
        select m.*, case when octet_length(m.body) > 7000 then crypto.gen_random_bytes(32) end as key
        from unnest(new.message_ids, new.receipt_handles, new.sent_ats, new.receive_counts, new.bodies)
          m (id, receipt, sent_at, count, body)
        offset 0
      ) m;
  end case;
  return new;
end
$$;

comment on function staging.receive_messages() is 'Stores the messages of a row copied into staging.inbox in staging.raw_messages';
revoke all on function staging.receive_messages() from public;

create or replace trigger receive_messages
instead of insert on staging.inbox
for each row execute function staging.receive_messages();
--! EndIncluded functions/staging.receive_messages.sql
--! Included tables/staging.batches.sql
-- The ledger: one row for each batch, logged, without personal data. Status, metrics and recovery read it.
--
-- A batch is staged, then masked, then acknowledged. It is lost if a crash emptied staging before it was acknowledged.
-- Then SQS delivers its messages again.
create table if not exists staging.batches (
  batch_id uuid primary key,
  rows integer not null,
  staged_at timestamptz not null default now(),
  masked_at timestamptz,
  acked_at timestamptz,
  lost_at timestamptz,
  inserted integer,
  duplicates integer,
  quarantined integer,
  no_addresses integer
);

-- For the loader's limit and for staging.sweep_batches: nearly always a handful of rows.
create index if not exists batches_pending on staging.batches (staged_at) where acked_at is null and lost_at is null;

comment on table staging.batches is 'Ledger of batches; in a masked batch, rows = inserted + duplicates + quarantined';
comment on column staging.batches.rows is 'Messages that the loader staged';
comment on column staging.batches.acked_at is 'When the batch''s messages were deleted from SQS';
comment on column staging.batches.lost_at is 'When the batch was found missing from staging; SQS delivers its messages again';
comment on column staging.batches.inserted is 'New rows in user_logins';
comment on column staging.batches.duplicates is 'Messages that were loaded or quarantined already';
comment on column staging.batches.quarantined is 'New rows in staging.quarantine';
comment on column staging.batches.no_addresses is 'Valid messages whose ip is not an address: with a port, a forwarded list, a network';
--! EndIncluded tables/staging.batches.sql
--! Included functions/staging.add_mask_job.sql
-- staging.add_mask_job(batch_id uuid) -> void
--
-- what:    adds the graphile-worker job that masks a batch, or makes an existing one due now
-- called:  by staging.submit_batch and staging.sweep_batches
-- writes:  graphile_worker's jobs
-- twice:   yes: there is one job for each batch
create or replace function staging.add_mask_job(batch_id uuid)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  perform graphile_worker.add_job(
    identifier => 'mask_batch',
    payload => json_build_object('batch_id', batch_id),
    job_key => 'mask_batch:' || batch_id
  );
end
$$;

comment on function staging.add_mask_job(uuid) is 'Adds the job that masks a batch';
revoke all on function staging.add_mask_job(uuid) from public;
--! EndIncluded functions/staging.add_mask_job.sql
--! Included functions/staging.submit_batch.sql
-- staging.submit_batch(batch_id uuid, row_count integer) -> void
--
-- what:    enters a staged batch in the ledger and adds its job
-- called:  by the loader, in the transaction that copied the rows
-- reads:   staging.raw_messages (counts rows)
-- writes:  staging.batches, graphile_worker's jobs
-- twice:   raises ML011: a loader that does not know whether its COMMIT succeeded calls again with the same batch_id,
--          and treats the error as success
-- raises:  ML010 the number of staged rows is not row_count; ML011 submitted already; 22023 an argument is null
create or replace function staging.submit_batch(batch_id uuid, row_count integer)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  staged integer;
begin
  if batch_id is null or row_count is null then
    raise exception using errcode = '22023', message = 'batch_id and row_count must not be null';
  end if;
  insert into staging.batches (batch_id, rows)
  values (submit_batch.batch_id, row_count)
  on conflict do nothing;
  if not found then
    raise exception using errcode = 'ML011', message = 'this batch has been submitted already';
  end if;

  -- The exception rolls back the sub-transaction and so releases its locks on all slots. Otherwise a loader that hangs
  -- before its COMMIT would prevent all slots from being emptied, not only the one it has filled.
  begin
    select count(*) into staged from staging.raw_messages m where m.batch_id = submit_batch.batch_id;
    raise exception 'counted';
  exception when raise_exception then
    null;
  end;
  if staged <> row_count or row_count < 1 then
    raise exception using
      errcode = 'ML010',
      message = format('the batch was submitted with %s rows, but %s are staged', row_count, staged);
  end if;

  perform staging.add_mask_job(batch_id);
end
$$;

comment on function staging.submit_batch(uuid, integer) is 'Enters a staged batch in the ledger and adds its job';
revoke all on function staging.submit_batch(uuid, integer) from public;
grant execute on function staging.submit_batch(uuid, integer) to logins_loader;
--! EndIncluded functions/staging.submit_batch.sql
--! Included functions/staging.backlog.sql
-- staging.backlog() -> (staged_rows bigint, oldest_staged_at timestamptz, oldest_age_seconds double precision)
--
-- what:    returns how many rows are staged and not yet masked, and since when the oldest waits (null if there are
--          none)
-- called:  by the loader, which pauses while either is too high; by staging.status
-- reads:   staging.batches
create or replace function staging.backlog(
  out staged_rows bigint,
  out oldest_staged_at timestamptz,
  out oldest_age_seconds double precision
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select
    coalesce(sum(b.rows), 0),
    min(b.staged_at),
    extract(epoch from clock_timestamp() - min(b.staged_at))::double precision
  from staging.batches b
  where b.acked_at is null
    and b.lost_at is null
    and b.masked_at is null
$$;

comment on function staging.backlog() is 'Rows staged and not yet masked, and the age of the oldest in seconds';
revoke all on function staging.backlog() from public;
grant execute on function staging.backlog() to logins_loader, logins_worker, logins_auditor;
--! EndIncluded functions/staging.backlog.sql

-- Masking, in small: an address in one form, a token, a padded value, what is a fault of the data.
--! Included functions/masking.canonical_ip.sql
-- masking.canonical_ip(ip text) -> text
--
-- what:    returns the one spelling of an address that is masked, so that equal addresses have equal tokens. IPv6 is
--          spelled as host(inet) does, and an IPv4-mapped IPv6 address as IPv4. Anything else is returned unchanged:
--          IPv4, networks (1.2.3.0/24), and what is not an address. Returns null for null and ''. inet accepts more
--          spellings of IPv4 (010.1.2.3, 1.2.3.4., ::ffff:1.2). They are not converted, because 010 is octal for 8 to
--          some senders, and a reveal must show what was sent.
-- takes:   ip: a column, not a constant. The planner inlines this function and would cast a constant to inet before it
--          evaluates the conditions; the error message would contain it.
-- called:  by masking.mask_rows and masking.tokens_of_value
-- raises:  nothing for a column: pg_input_is_valid is evaluated before the cast
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
    when strpos(ip, '.') > 0 and ip !~ ':(0|[1-9][0-9]{0,2})([.](0|[1-9][0-9]{0,2})){3}$' then ip
    when ip::inet <<= inet '::ffff:0:0/96' then substr(host(ip::inet), 8)
    else host(ip::inet)
  end
$$;

comment on function masking.canonical_ip(text) is 'An address in the one spelling that is masked';
revoke all on function masking.canonical_ip(text) from public;
--! EndIncluded functions/masking.canonical_ip.sql
--! Included functions/masking.token_of.sql
-- masking.token_of(digest bytea, key_version integer) -> uuid
--
-- what:    returns the token of a digest: a UUIDv8 whose first byte is the version of the token key, and whose other
--          free bits are those of the digest. Returns null for null.
-- takes:   digest: HMAC-SHA256 (RFC 2104) of the canonical value under the field's token key, 32 bytes. Pass a column,
--          not an expression: the planner inlines this function and would evaluate an expression three times.
-- called:  by masking.mask_rows, masking.retoken_vault, masking.decrypted_value and masking.tokens_of_value
-- source:  RFC 9562 5.8 (UUIDv8): version nibble in byte 6, variant bits in byte 8
create or replace function masking.token_of(digest bytea, key_version integer)
returns uuid
language sql
immutable
parallel safe
as $$
  select encode(
    set_byte(
      set_byte(
        set_byte(substr(digest, 1, 16), 0, key_version),
        6, (get_byte(digest, 6) & 15) | 128
      ),
      8, (get_byte(digest, 8) & 63) | 128
    ),
    'hex'
  )::uuid
$$;

comment on function masking.token_of(bytea, integer) is 'The token of a digest: a UUIDv8 whose first byte is the version of the key';
revoke all on function masking.token_of(bytea, integer) from public;
--! EndIncluded functions/masking.token_of.sql
--! Included functions/masking.padded.sql
-- masking.padded(value text) -> bytea
--
-- what:    returns the value in UTF-8, padded with 0x80 0x00... (ISO/IEC 7816-4) to 64 bytes, or to 320 if it is longer
--          than 63 bytes. So the length of a ciphertext tells only whether a value is longer than any address and
--          nearly any device id. If all were padded to 320 bytes, masking would take a third longer and three times the
--          disk.
-- called:  by masking.mask_rows and masking.reencrypt_vault. STABLE, like convert_to. If it were declared IMMUTABLE,
--          the planner would not inline it, and a plan could contain the value.
-- raises:  nothing for values of up to 319 bytes; events with longer ones are quarantined
create or replace function masking.padded(value text)
returns bytea
language sql
stable
parallel safe
as $$
  select convert_to(value, 'UTF8')
      || substring(
           decode('80' || repeat('00', 319), 'hex'),
           1,
           case when octet_length(value) < 64 then 64 else 320 end - octet_length(value)
         )
$$;

comment on function masking.padded(text) is 'A value as it is encrypted: UTF-8, padded to 64 or 320 bytes';
revoke all on function masking.padded(text) from public;
--! EndIncluded functions/masking.padded.sql
--! Included functions/masking.cipher_options.sql
-- masking.cipher_options() -> text
--
-- what:    returns the options for pgp_sym_encrypt: AES-256; s2k-mode=1 (salted, not iterated), because stretching
--          cannot improve a password that is a random 256-bit key, and costs 25 times as much as the encryption; no
--          compression, because the length of compressed data depends on its content. The integrity check (MDC) is on
--          by default and stays on.
-- called:  by functions of masking that encrypt
-- source:  Postgres manual, F.26.3.8 "Options for PGP Functions"
create or replace function masking.cipher_options()
returns text
language sql
immutable
parallel safe
as $$
  select 'cipher-algo=aes256, s2k-mode=1, compress-algo=0'
$$;

comment on function masking.cipher_options() is 'Options for pgp_sym_encrypt: AES-256, no stretching, no compression';
revoke all on function masking.cipher_options() from public;
--! EndIncluded functions/masking.cipher_options.sql
--! Included functions/masking.is_fault_of_data.sql
-- masking.is_fault_of_data(code text) -> boolean
--
-- what:    whether an error with this SQLSTATE was caused by the data, so that its row must be isolated. Other errors
--          (sealed, deadlock, disk full, cancelled, shutdown, damaged files, our own bugs) have nothing to do with the
--          row: retry, or repair the cause.
-- called:  by functions that catch errors while masking
-- source:  Postgres manual, appendix A "PostgreSQL Error Codes"
create or replace function masking.is_fault_of_data(code text)
returns boolean
language sql
immutable
parallel safe
as $$
  select left(code, 2) not in ('08', '25', '28', '40', '42', '53', '55', '57', '58', 'F0', 'ML')
     and code not in ('XX001', 'XX002')
$$;

comment on function masking.is_fault_of_data(text) is 'Whether an error with this SQLSTATE was caused by the data';
revoke all on function masking.is_fault_of_data(text) from public;
--! EndIncluded functions/masking.is_fault_of_data.sql

-- Masking, from body to event: decrypt it, parse it, unwrap it, and say what is wrong with it.
--! Included functions/masking.sample_body.sql
-- masking.sample_body() -> bytea
--
-- what:    returns the body of a valid login event, with a short value, a long one, and arrays nested 500 deep. If
--          masking it fails, no message is to blame. Its address is from a range for documentation.
-- called:  by masking.fault_of_body and masking.probe
-- source:  RFC 3849 (2001:db8::/32)
create or replace function masking.sample_body()
returns bytea
language sql
stable
parallel safe
as $$
  select convert_to(
    '{"user_id": "masked-logins", "ip": "2001:DB8:0::1", "device_id": "' || repeat('sample ', 20)
      || '", "device_type": "probe", "locale": "en-US", "app_version": "1.0", "nested": '
      || repeat('[', 500) || repeat(']', 500) || '}',
    'UTF8'
  )
$$;

comment on function masking.sample_body() is 'The body of a valid login event';
revoke all on function masking.sample_body() from public;
--! EndIncluded functions/masking.sample_body.sql
--! Included functions/masking.staged_body.sql
-- masking.staged_body(body bytea, body_key bytea) -> bytea
--
-- what:    returns a body of staging.raw_messages as it was received: decrypts one that was too long for its row
-- called:  by masking.mask_rows and masking.quarantine_message. Neither STRICT nor with settings, so that the planner
--          inlines it.
create or replace function masking.staged_body(body bytea, body_key bytea)
returns bytea
language sql
immutable
as $$
  select case when body_key is null then body else crypto.decrypt(body, body_key, 'aes') end
$$;

comment on function masking.staged_body(bytea, bytea) is 'A staged body as it was received';
revoke all on function masking.staged_body(bytea, bytea) from public;
--! EndIncluded functions/masking.staged_body.sql
--! Included functions/masking.read_body.sql
-- masking.read_body(body bytea) -> jsonb
--
-- what:    returns a body as jsonb, or null if Postgres cannot store it as jsonb: not UTF-8, a NUL byte, not JSON,
--          \u0000, a lone surrogate, 1e999999, nested deeper than the stack allows
-- called:  by functions of masking that must not fail because of a body
-- raises:  nothing that a body can cause. Each call is a sub-transaction, which alone catches all such errors:
--          pg_input_is_valid and `is json` themselves raise 54001 if the body is nested too deeply.
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

comment on function masking.read_body(bytea) is 'A body as jsonb, or null if it cannot be read';
revoke all on function masking.read_body(bytea) from public;
--! EndIncluded functions/masking.read_body.sql
--! Included functions/masking.from_base64.sql
-- masking.from_base64(body bytea) -> bytea
--
-- what:    decodes a body that consists of base64, in either alphabet, with or without padding; null if it does not
-- called:  by masking.fault_of_body and masking.user_of_body
-- raises:  nothing that a body can cause
-- source:  RFC 4648 (base64, base64url)
create or replace function masking.from_base64(body bytea)
returns bytea
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
  digits text;
begin
  digits := translate(convert_from(body, 'UTF8'), '-_= ' || chr(9) || chr(10) || chr(13), '+/');
  return decode(digits || repeat('=', -length(digits) & 3), 'base64');
exception when invalid_parameter_value or character_not_in_repertoire then
  return null;
end
$$;

comment on function masking.from_base64(bytea) is 'Decodes a body of base64; null if it is none';
revoke all on function masking.from_base64(bytea) from public;
--! EndIncluded functions/masking.from_base64.sql
--! Included functions/masking.event_inside.sql
-- masking.event_inside(event jsonb) -> jsonb
--
-- what:    returns the JSON object inside an envelope of SNS (Message, a string) or EventBridge (detail), unwrapped
--          once; anything else unchanged
-- called:  by masking.mask_rows, quarantine_message and user_of_body, for JSON without user_id
-- raises:  nothing that an envelope can cause
-- source:  AWS: "Fanout Amazon SNS notifications to Amazon SQS queues", "EventBridge event structure"
create or replace function masking.event_inside(event jsonb)
returns jsonb
language plpgsql
stable
strict
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
  inside jsonb;
begin
  if event ->> 'Type' = 'Notification' and jsonb_typeof(event -> 'Message') = 'string' then
    inside := masking.read_body(convert_to(event ->> 'Message', 'UTF8'));
  elsif jsonb_typeof(event -> 'detail-type') = 'string' and jsonb_typeof(event -> 'source') = 'string' then
    inside := event -> 'detail';
  end if;
  return case when jsonb_typeof(inside) = 'object' then inside else event end;
end
$$;

comment on function masking.event_inside(jsonb) is 'The content of an envelope of SNS or EventBridge; anything else unchanged';
revoke all on function masking.event_inside(jsonb) from public;
--! EndIncluded functions/masking.event_inside.sql
--! Included functions/masking.fault_of_body.sql
-- masking.fault_of_body(body bytea) -> text
--
-- what:    returns why a body cannot be read, in words that contain nothing of it; null if it can be read
-- called:  by masking.mask_rows, for bodies that masking.read_body returned null for
-- raises:  nothing that a body can cause; ML015 even a valid body cannot be read
create or replace function masking.fault_of_body(body bytea)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
begin
  perform convert_from(body, 'UTF8')::jsonb;
  return null;
exception when others then
  if not masking.is_fault_of_data(sqlstate) then
    raise;
  end if;
  if masking.read_body(masking.sample_body()) is null then
    raise exception using
      errcode = 'ML015',
      message = format('bodies cannot be read, not even a valid one (SQLSTATE %s)', sqlstate),
      hint = 'Look for recent changes: max_stack_depth (alter database, alter role), other settings, the server''s encoding';
  end if;
  -- gzip begins with 1f 8b, in base64 with H4sI. { is e in base64, and no JSON begins with e.
  if substr(body, 1, 2) = decode('1f8b', 'hex') or substr(body, 1, 4) = convert_to('H4sI', 'UTF8') then
    return 'body: gzip, or base64 of gzip';
  elsif sqlstate = '22P02' and substr(body, 1, 1) = convert_to('e', 'UTF8')
    and jsonb_typeof(masking.read_body(masking.from_base64(body))) = 'object' then
    return 'body: base64';
  end if;
  return case sqlstate
    when '22021' then 'body: not UTF-8 text, or holds a NUL byte'
    when '22P02' then 'body: not JSON'
    when '22P05' then 'body: holds an escape that no text can hold (NUL or half a surrogate pair)'
    when '22003' then 'body: holds a number out of range'
    when '54001' then 'body: nested too deeply'
    else 'body: cannot be read (SQLSTATE ' || sqlstate || ')'
  end;
end
$$;

comment on function masking.fault_of_body(bytea) is 'Why a body cannot be read, in words that contain nothing of it';
revoke all on function masking.fault_of_body(bytea) from public;
--! EndIncluded functions/masking.fault_of_body.sql
--! Included functions/masking.fault_of_json.sql
-- masking.fault_of_json(event jsonb) -> text
--
-- what:    returns what JSON without a user_id is, in words that contain nothing of it. Messages of AWS that are not
--          events have reasons of their own (docs/errors.md).
-- called:  by masking.mask_rows, after masking.event_inside
-- source:  AWS: "HTTP/HTTPS notification JSON format" (SNS), "Event notification types" (S3); PayloadS3Pointer of
--          awslabs/payload-offloading-java-common-lib-for-aws, MessageS3Pointer of its predecessor
create or replace function masking.fault_of_json(event jsonb)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
begin
  -- An expression, not a query: auto_explain would log the parameter of a query, which contains the body.
  return case
    when event ->> 0 in (
      'software.amazon.payloadoffloading.PayloadS3Pointer',
      'com.amazon.sqs.javamessaging.MessageS3Pointer'
    ) then 'body: pointer of the SQS extended client'
    when jsonb_typeof(event) <> 'object' then 'body: not a JSON object'
    when event ->> 'Type' = 'Notification' and event ? 'Message' then 'body: SNS envelope without a login event'
    when event ->> 'Type' in ('SubscriptionConfirmation', 'UnsubscribeConfirmation') and event ? 'TopicArn'
      then 'body: SNS subscription confirmation'
    when event ? 'detail-type' and event ? 'detail' then 'body: EventBridge envelope without a login event'
    when event ->> 'Service' = 'Amazon S3' and event ->> 'Event' = 's3:TestEvent' then 'body: S3 test event'
    when event -> 'Records' -> 0 ? 's3' then 'body: S3 event notification'
    else 'user_id: missing'
  end;
end
$$;

comment on function masking.fault_of_json(jsonb) is 'What JSON without a user_id is, in words that contain nothing of it';
revoke all on function masking.fault_of_json(jsonb) from public;
--! EndIncluded functions/masking.fault_of_json.sql
--! Included functions/masking.fault_of_event.sql
-- masking.fault_of_event(event jsonb) -> text
--
-- what:    returns why an event cannot be loaded, as a field and a fault that contain nothing of it; null if it can be
-- takes:   event: a column, not an expression: the planner inlines this function
-- called:  by masking.mask_rows, for events that are not obviously valid
create or replace function masking.fault_of_event(event jsonb)
returns text
language sql
stable
as $$
  select case
    when jsonb_typeof(event) <> 'object' or not event ? 'user_id' then masking.fault_of_json(event)
    when jsonb_typeof(event -> 'user_id') = 'null' then 'user_id: null'
    when jsonb_typeof(event -> 'user_id') <> 'string' then 'user_id: not a string'
    when event ->> 'user_id' = '' then 'user_id: empty'
    when length(event ->> 'user_id') > 128 then 'user_id: longer than 128 characters'
    when jsonb_typeof(event -> 'ip') not in ('string', 'null') then 'ip: not a string'
    when octet_length(event ->> 'ip') > 256 then 'ip: longer than 256 bytes'
    when jsonb_typeof(event -> 'device_id') not in ('string', 'null') then 'device_id: not a string'
    when octet_length(event ->> 'device_id') > 256 then 'device_id: longer than 256 bytes'
    when jsonb_typeof(event -> 'device_type') not in ('string', 'null') then 'device_type: not a string'
    when length(event ->> 'device_type') > 32 then 'device_type: longer than 32 characters'
    when jsonb_typeof(event -> 'locale') not in ('string', 'null') then 'locale: not a string'
    when length(event ->> 'locale') > 32 then 'locale: longer than 32 characters'
    when jsonb_typeof(event -> 'app_version') not in ('string', 'null') then 'app_version: not a string'
    when length(event ->> 'app_version') > 64 then 'app_version: longer than 64 characters'
  end
$$;

comment on function masking.fault_of_event(jsonb) is 'Why an event cannot be loaded, as a field and a fault';
revoke all on function masking.fault_of_event(jsonb) from public;
--! EndIncluded functions/masking.fault_of_event.sql

-- Masking, a batch: all rows in one statement, and ways out for messages that make it fail.
--! Included types/masking.counts.sql
-- What became of the messages of a batch. Those that are neither inserted nor quarantined are duplicates.
do $$
begin
  if to_regtype('masking.counts') is null then
    create type masking.counts as (
      rows integer,
      inserted integer,
      quarantined integer,
      no_addresses integer
    );
  end if;
end
$$;

comment on type masking.counts is 'What became of the messages of a batch';
comment on column masking.counts.rows is 'Messages';
comment on column masking.counts.inserted is 'New rows in user_logins';
comment on column masking.counts.quarantined is 'New rows in staging.quarantine';
comment on column masking.counts.no_addresses is 'Valid messages whose ip is not an address';
--! EndIncluded types/masking.counts.sql
--! Included functions/masking.require_read_committed.sql
-- masking.require_read_committed() -> void
--
-- what:    refuses REPEATABLE READ and SERIALIZABLE transactions. They do not see what others have committed since they
--          began. So they could delete a value that a new login needs, or miss a login.
-- called:  by functions that mask, delete values, truncate, or decide that nothing is left
-- raises:  25000 not READ COMMITTED
create or replace function masking.require_read_committed()
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception using
      errcode = '25000',
      message = 'this function needs a READ COMMITTED transaction, to see what others have committed',
      hint = 'Run begin transaction isolation level read committed';
  end if;
end
$$;

comment on function masking.require_read_committed() is 'Refuses transactions that do not see what others have committed';
revoke all on function masking.require_read_committed() from public;
--! EndIncluded functions/masking.require_read_committed.sql
--! Included functions/masking.mask_rows.sql
-- masking.mask_rows(batch_id uuid, lenient boolean, only_message_id uuid default null) -> masking.counts
--
-- what:    masks the rows of a batch, or one message of it, in one statement. Its stages are CTEs, in this order:
--
--          bodies    the staged bodies, decrypted if they were long, parsed as JSON
--          events    the login event in each body, taken out of its envelope if it has one
--          texts     the event's fields as text
--          fields    the same, the address in canonical form, and the fault if the event cannot be loaded
--          digests   HMAC of address and device id
--          masked    all of that with tokens: the batch as it is stored. It is computed once; what follows reads it.
--          batch     counts, and which of two ways the logins are inserted
--          held      messages that are in quarantine and stay there
--
--          Then it writes: new values, encrypted, to the vault (vaulted), valid events to user_logins (loaded or
--          loaded_unless_present), and the others, encrypted, to quarantine (quarantined).
-- takes:   lenient: false casts all bodies at once, and fails if one cannot be cast, or if a message is stored already
--          although SQS delivers all of the batch for the first time. This is fast and nearly always succeeds. true
--          parses each body in a sub-transaction, and skips messages that are stored already.
-- called:  by masking.mask_staged, masking.mask_one_by_one and masking.probe
-- reads:   staging.raw_messages, masking.keys, masking.kek
-- writes:  masking.vault, public.user_logins, staging.quarantine
-- twice:   yes: what is stored already is not changed
-- raises:  ML001, ML002; if not lenient, any error of a cast to jsonb, and 23505
--
-- The plan must not depend on the sizes of the tables, now or when it was made: a plan that was made for an empty vault
-- and kept while it filled was 150 times slower. So `offset 0` in a `not exists` makes it one index lookup a row, where
-- the planner would choose a join, and the settings exclude other plans. A generic plan saves planning, and does not
-- contain keys as constants. work_mem is well above the largest batch of a loader, so that nothing in the clear is
-- written to a temporary file.
create or replace function masking.mask_rows(
  batch_id uuid,
  lenient boolean,
  only_message_id uuid default null
)
returns masking.counts
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_nestloop = on
set enable_indexscan = on
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set jit = off
set work_mem = '256MB'
as $$
declare
  counts masking.counts;
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
  -- Variables of their own, because the fields of a record would be looked up for each row.
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

  -- Each `offset 0` prevents the planner from merging a level with the next, and evaluating its expressions again for
  -- each use.
  bodies as (
    select
      m.message_id, m.sent_at, m.receive_count, m.received_body as body,
      case when lenient then masking.read_body(m.received_body) else convert_from(m.received_body, 'UTF8')::jsonb end as json
    from (select s.*, masking.staged_body(s.body, s.body_key) as received_body from staging.raw_messages s) m
    where m.batch_id = mask_rows.batch_id
      and (only_message_id is null or m.message_id = only_message_id)
    offset 0
  ),

  events as (
    select
      b.*,
      case when b.json ? 'user_id' then b.json else masking.event_inside(b.json) end as event
    from bodies b
    offset 0
  ),

  texts as (
    select
      e.*,
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
      t.message_id, t.sent_at, t.receive_count, t.body, t.user_id, t.device_type, t.locale, t.app_version,
      masking.canonical_ip(t.ip) as ip,
      nullif(t.device_id, '') as device_id,
      case
        -- Recognises nearly all valid events, at a third of the cost: only strings and nulls, none of them long. In
        -- strict mode, a value that is neither a string nor a null makes the comparison unknown.
        when octet_length(t.user_id) between 1 and 128
          and coalesce(octet_length(t.ip), 0) <= 256
          and coalesce(octet_length(t.device_id), 0) <= 256
          and coalesce(octet_length(t.device_type), 0) <= 32
          and coalesce(octet_length(t.locale), 0) <= 32
          and coalesce(octet_length(t.app_version), 0) <= 64
          and not t.event @@ 'strict ($.* == "") is unknown' then null
        when t.event is null then masking.fault_of_body(t.body)
        else masking.fault_of_event(t.event)
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

  -- The columns that most readers need come first.
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

  batch as materialized (
    select
      count(*) as rows,
      count(*) filter (where m.fault is null) as valid_rows,
      -- Addresses with a port, lists and networks are masked unchanged, and counted: their sender may not know.
      count(*) filter (where m.fault is null and not (pg_input_is_valid(m.ip, 'inet') and strpos(m.ip, '/') = 0))
        as no_addresses,
      -- Messages that SQS delivers for the first time are hardly ever stored already. All rows of a batch are inserted
      -- the same way: with two ways, and so two orders of rows, two batches could deadlock.
      lenient or bool_or(m.receive_count is distinct from 1) as may_be_present,
      min(m.sent_at) as first_sent_at,
      max(m.sent_at) as last_sent_at
    from masked m
  ),

  -- A quarantined message stays there until it is replayed. It has the same sent_at each time it is delivered, and most
  -- batches are from a time of which nothing is in quarantine.
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

  -- In token order, so that two batches with the same new values wait for each other in the same order and cannot
  -- deadlock. Sorted before the lookup of known tokens, so that the index is read page by page.
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

  -- In the order of the primary key, so that two batches with the same messages cannot deadlock, and the index is
  -- written page by page.
  loaded as (
    insert into public.user_logins
      (user_id, create_date, message_id, device_type, masked_ip, masked_device_id, locale, app_version)
    select
      m.user_id, m.sent_at, m.message_id, m.device_type, m.masked_ip, m.masked_device_id, m.locale, m.app_version
    from masked m
    where m.fault is null
      and not (select b.may_be_present from batch b)
      and m.message_id not in (select h.message_id from held h)
    order by m.user_id, m.sent_at, m.message_id
  ),

  -- The same with `on conflict`, which costs an eighth of the insert. If there is a conflict nevertheless, the insert
  -- above fails, and masking.mask_staged calls again with lenient: then all rows are inserted here.
  loaded_unless_present as (
    insert into public.user_logins
      (user_id, create_date, message_id, device_type, masked_ip, masked_device_id, locale, app_version)
    select
      m.user_id, m.sent_at, m.message_id, m.device_type, m.masked_ip, m.masked_device_id, m.locale, m.app_version
    from masked m
    where m.fault is null
      and (select b.may_be_present from batch b)
      and m.message_id not in (select h.message_id from held h)
    order by m.user_id, m.sent_at, m.message_id
    on conflict do nothing
    returning 1
  ),

  quarantined as (
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
      -- A message that was loaded stays loaded, even if a later version would quarantine it.
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

  -- Postgres runs referenced CTEs first, then the others in reverse order: quarantine, logins, vault. So all batches
  -- lock in the same order. The manual does not promise this; test/sql/idempotency.test.ts checks it.
  select
    b.rows,
    (select count(*) from quarantined),
    -- Without `on conflict`, either all valid rows are inserted or the statement fails. RETURNING would cost more.
    case
      when b.may_be_present then (select count(*) from loaded_unless_present)
      else b.valid_rows - (select count(*) from held)
    end,
    b.no_addresses
  into counts.rows, counts.quarantined, counts.inserted, counts.no_addresses
  from batch b;
  return counts;
end
$$;

comment on function masking.mask_rows(uuid, boolean, uuid) is 'Masks the rows of a batch in one statement';
revoke all on function masking.mask_rows(uuid, boolean, uuid) from public;
--! EndIncluded functions/masking.mask_rows.sql
--! Included functions/masking.quarantine_message.sql
-- masking.quarantine_message(batch_id uuid, message_id uuid, reason text) -> boolean
--
-- what:    quarantines one message that masking.mask_rows failed on, unless it has been loaded before. Returns whether
--          it is new in quarantine.
-- called:  by masking.mask_one_by_one
-- reads:   staging.raw_messages, public.user_logins, masking.keys, masking.kek
-- writes:  staging.quarantine
-- twice:   yes
-- raises:  ML001, ML002
create or replace function masking.quarantine_message(batch_id uuid, message_id uuid, reason text)
returns boolean
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
  body_cipher record := masking.active_key('cipher', 'body');
begin
  insert into staging.quarantine (message_id, sent_at, reason, key_version, body)
  select
    m.message_id,
    m.sent_at,
    quarantine_message.reason,
    body_cipher.version,
    crypto.pgp_sym_encrypt_bytea(b.body, encode(body_cipher.key, 'hex'), masking.cipher_options())
  from staging.raw_messages m
  cross join lateral (select masking.staged_body(m.body, m.body_key) as body) b
  where m.batch_id = quarantine_message.batch_id
    and m.message_id = quarantine_message.message_id
    -- A message that was loaded before stays loaded.
    and not exists (
      select
      from public.user_logins l
      where l.user_id in (masking.read_body(b.body) ->> 'user_id', masking.event_inside(masking.read_body(b.body)) ->> 'user_id')
        and l.create_date = m.sent_at
        and l.message_id = m.message_id
    )
  limit 1
  on conflict do nothing;
  return found;
end
$$;

comment on function masking.quarantine_message(uuid, uuid, text) is 'Quarantines one message of a batch';
revoke all on function masking.quarantine_message(uuid, uuid, text) from public;
--! EndIncluded functions/masking.quarantine_message.sql
--! Included functions/masking.probe.sql
-- masking.probe(sent_at timestamptz) -> text
--
-- what:    whether masking works at this moment: masks a valid event in a sub-transaction that is always rolled back.
--          Returns null if it succeeded, otherwise the SQLSTATE. An error is caused by a message only if this is null.
-- takes:   sent_at: of the message that failed, so that the event goes to the same partition
-- called:  by masking.mask_one_by_one
-- reads:   masking.keys, masking.kek
-- writes:  nothing permanent: staging.raw_messages, masking.vault and public.user_logins, rolled back
-- twice:   yes
-- raises:  ML001, ML002, ML015; errors of the server
create or replace function masking.probe(sent_at timestamptz)
returns text
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  probe_batch_id uuid := gen_random_uuid();
  works boolean := false;
begin
  insert into staging.inbox (batch_id, message_ids, receipt_handles, sent_ats, receive_counts, bodies)
  values (
    probe_batch_id, array[gen_random_uuid()], array[''], array[probe.sent_at], array[1], array[masking.sample_body()]
  );
  works := (masking.mask_rows(probe_batch_id, lenient => true)).inserted = 1;
  raise exception using message = 'rolls the sub-transaction back';
exception when others then
  if works then
    return null;
  elsif not masking.is_fault_of_data(sqlstate) then
    raise;
  end if;
  return sqlstate;
end
$$;

comment on function masking.probe(timestamptz) is 'Whether masking works now: null, or the SQLSTATE with which a valid event fails';
revoke all on function masking.probe(timestamptz) from public;
--! EndIncluded functions/masking.probe.sql
--! Included functions/masking.mask_one_by_one.sql
-- masking.mask_one_by_one(batch_id uuid) -> masking.counts
--
-- what:    masks a batch message by message, each in a sub-transaction, and quarantines those that fail: one message
--          that nobody foresaw does not stop the others. If the error is not in the data, valid messages must stay in
--          SQS. So a message is quarantined only if a valid event can be masked at that moment, and at most a tenth of
--          the messages are (or one). Otherwise the batch fails.
-- called:  by masking.mask_staged, when a batch has failed twice as a whole
-- reads:   staging.raw_messages, masking.keys, masking.kek
-- writes:  masking.vault, public.user_logins, staging.quarantine
-- twice:   yes
-- raises:  ML001, ML002; ML015 more messages fail, or a valid event fails too; errors of the server; 40P01 two batches
--          are masked this way at once, with the same new values in another order: the job's next attempt succeeds
create or replace function masking.mask_one_by_one(batch_id uuid)
returns masking.counts
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  one record;
  counted masking.counts;
  total masking.counts := (0, 0, 0, 0);
  left_to_quarantine integer;
begin
  select greatest(count(distinct m.message_id) / 10, 1)
    into left_to_quarantine
    from staging.raw_messages m
   where m.batch_id = mask_one_by_one.batch_id;

  for one in
    select m.message_id, min(m.sent_at) as sent_at, count(*)::integer as copies
      from staging.raw_messages m
     where m.batch_id = mask_one_by_one.batch_id
     group by m.message_id
     order by m.message_id
  loop
    total.rows := total.rows + one.copies;
    begin
      counted := masking.mask_rows(batch_id, lenient => true, only_message_id => one.message_id);
      total.inserted := total.inserted + counted.inserted;
      total.quarantined := total.quarantined + counted.quarantined;
      total.no_addresses := total.no_addresses + counted.no_addresses;
    exception when others then
      if not masking.is_fault_of_data(sqlstate) then
        raise;
      end if;
      -- A message that is in quarantine or loaded already is not counted.
      if masking.quarantine_message(
        batch_id, one.message_id, reason => 'message: cannot be masked (SQLSTATE ' || sqlstate || ')'
      ) then
        total.quarantined := total.quarantined + 1;
        left_to_quarantine := left_to_quarantine - 1;
        if left_to_quarantine < 0 or masking.probe(one.sent_at) is not null then
          raise exception using
            errcode = 'ML015',
            message = format('masking fails with SQLSTATE %s for a reason that is not in the messages', sqlstate),
            detail = 'Nothing of the batch was masked, quarantined or acknowledged. The job is retried',
            hint = 'Look for recent changes: settings (alter database, alter role), triggers, partitions, extensions';
        end if;
      end if;
    end;
  end loop;
  return total;
end
$$;

comment on function masking.mask_one_by_one(uuid) is 'Masks a batch message by message and quarantines those that fail';
revoke all on function masking.mask_one_by_one(uuid) from public;
--! EndIncluded functions/masking.mask_one_by_one.sql
--! Included functions/masking.mask_staged.sql
-- masking.mask_staged(batch_id uuid) -> masking.counts
--
-- what:    masks the staged rows of a batch: all at once, the fast way. If a message makes that fail, all at once with
--          each body parsed in a sub-transaction. If that fails too, message by message.
-- called:  by masking.mask_batch and staging.replay
-- reads:   staging.raw_messages, masking.keys, masking.kek
-- writes:  masking.vault, public.user_logins, staging.quarantine
-- locks:   masking.keys and masking.vault against rotations, erasures and purges, until the transaction ends. Whoever
--          creates a key or deletes values waits for the batches under way, and later batches see the change.
-- twice:   yes
-- raises:  ML001 sealed; ML002 wrong key-encryption key; ML015 masking fails for a reason that is not in the messages;
--          25000 not READ COMMITTED: such a transaction could mask with a key that has been destroyed since, or rely on
--          a value that has been deleted; errors of the server
create or replace function masking.mask_staged(batch_id uuid)
returns masking.counts
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  counts masking.counts;
begin
  perform masking.require_read_committed();
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
  return counts;
end
$$;

comment on function masking.mask_staged(uuid) is 'Masks the staged rows of a batch, isolating messages that cannot be masked';
revoke all on function masking.mask_staged(uuid) from public;
--! EndIncluded functions/masking.mask_staged.sql
--! Included functions/masking.mask_batch.sql
-- masking.mask_batch(batch_id uuid) -> setof (receipt_handle text)
--
-- what:    masks a staged batch, stores the result in its row of the ledger, and returns the receipt handles with which
--          its messages may be deleted from SQS once this transaction is committed
-- called:  by the worker's task mask_batch, as logins_worker
-- reads:   staging.raw_messages, masking.keys, masking.kek
-- writes:  masking.vault, public.user_logins, staging.quarantine, staging.batches
-- twice:   yes: a masked batch returns its receipt handles again until it is closed. A batch whose rows were lost in a
--          crash is marked as lost and returns none, so that SQS delivers its messages again.
-- raises:  ML001 sealed; ML002 wrong key-encryption key; ML012 no such batch; ML015 masking fails for a reason that is
--          not in the messages; 25000 not READ COMMITTED; errors of the server with their own SQLSTATE, without details
create or replace function masking.mask_batch(batch_id uuid)
returns table (receipt_handle text)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set work_mem = '256MB'
as $$
declare
  batch staging.batches;
  counts masking.counts;
begin
  -- Only one session masks a batch at a time.
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
           no_addresses = counts.no_addresses,
           duplicates = counts.rows - counts.inserted - counts.quarantined
     where b.batch_id = mask_batch.batch_id;
  end if;

  return query
    select m.receipt_handle
      from staging.raw_messages m
     where m.batch_id = mask_batch.batch_id;

exception when others then
  -- An error of the server may contain a row or a statement, so only its code is passed on. Errors of class ML contain
  -- no data.
  if sqlstate like 'ML%' then
    raise;
  end if;
  raise exception using
    errcode = sqlstate,
    message = 'masking a batch failed';
end
$$;

comment on function masking.mask_batch(uuid) is 'Masks a staged batch and returns the receipt handles of its messages';
revoke all on function masking.mask_batch(uuid) from public;
grant execute on function masking.mask_batch(uuid) to logins_worker;
--! EndIncluded functions/masking.mask_batch.sql

-- After masking: the batch is closed once SQS has deleted its messages, and its slot of staging is truncated.
--! Included functions/staging.batch_state.sql
-- staging.batch_state(batch_id uuid) -> text
--
-- what:    returns the state of a batch: staged, masked, acknowledged or lost; null if it is not in the ledger. A batch
--          that was marked as lost and acknowledged later is acknowledged.
-- called:  by the worker's task mask_batch, if a batch has no receipt handles
-- reads:   staging.batches
create or replace function staging.batch_state(batch_id uuid)
returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select
    case
      when b.acked_at is not null then 'acknowledged'
      when b.lost_at is not null then 'lost'
      when b.masked_at is not null then 'masked'
      else 'staged'
    end
  from staging.batches b
  where b.batch_id = batch_state.batch_id
$$;

comment on function staging.batch_state(uuid) is 'The state of a batch: staged, masked, acknowledged or lost';
revoke all on function staging.batch_state(uuid) from public;
grant execute on function staging.batch_state(uuid) to logins_worker;
--! EndIncluded functions/staging.batch_state.sql
--! Included functions/staging.close_batch.sql
-- staging.close_batch(batch_id uuid) -> (inserted integer, duplicates integer, quarantined integer)
--
-- what:    marks a masked batch as acknowledged, and returns its counts. staging.recycle_slots then removes its rows
--          from the disk.
-- called:  by the worker's task mask_batch, after the batch's messages have been deleted from SQS
-- writes:  staging.batches
-- twice:   yes
-- raises:  ML013 the batch is not masked: its rows would be lost
create or replace function staging.close_batch(
  batch_id uuid,
  out inserted integer,
  out duplicates integer,
  out quarantined integer
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update staging.batches b
     set acked_at = coalesce(b.acked_at, now())
   where b.batch_id = close_batch.batch_id
     and b.masked_at is not null
  returning b.inserted, b.duplicates, b.quarantined
    into close_batch.inserted, close_batch.duplicates, close_batch.quarantined;
  if not found then
    raise exception using errcode = 'ML013', message = 'the batch is not masked';
  end if;
end
$$;

comment on function staging.close_batch(uuid) is 'Marks a batch as acknowledged';
revoke all on function staging.close_batch(uuid) from public;
grant execute on function staging.close_batch(uuid) to logins_worker;
--! EndIncluded functions/staging.close_batch.sql
--! Included functions/staging.slot_table.sql
-- staging.slot_table(slot integer) -> regclass
--
-- what:    returns the table of a slot of staging.raw_messages
-- called:  by staging.empty_slot, staging.is_filled, staging.residue and staging.slot_holders
create or replace function staging.slot_table(slot integer)
returns regclass
language sql
stable
as $$
  select format('staging.raw_messages_%s', slot)::regclass
$$;

comment on function staging.slot_table(integer) is 'The table of a slot of staging.raw_messages';
revoke all on function staging.slot_table(integer) from public;
--! EndIncluded functions/staging.slot_table.sql
--! Included functions/staging.is_filled.sql
-- staging.is_filled(slot integer) -> boolean
--
-- what:    whether the file of a slot of staging.raw_messages contains anything: rows, or what rolled-back transactions
--          left. A slot that is locked against reading counts as filled.
-- called:  by staging.recycle_slots and staging.residue
-- reads:   the size of the slot's file
-- locks:   the slot, against DROP and TRUNCATE, released at once
-- twice:   yes
create or replace function staging.is_filled(slot integer)
returns boolean
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $$
begin
  return pg_relation_size(staging.slot_table(slot)) > 0;
exception when lock_not_available then
  return true;
end
$$;

comment on function staging.is_filled(integer) is 'Whether the file of a slot of staging.raw_messages contains anything';
revoke all on function staging.is_filled(integer) from public;
--! EndIncluded functions/staging.is_filled.sql
--! Included functions/staging.slot_holders.sql
-- staging.slot_holders(slots integer[]) -> integer[]
--
-- what:    returns the process ids of the sessions that keep slots of staging.raw_messages from being emptied: they
--          hold a lock on one of these slots, or on the row of the open slot, which staging.recycle_slots locks. 0
--          stands for a prepared transaction, which has no session. Null if there are none. Sessions that hold a lock
--          for a moment only are included.
-- called:  by staging.recycle_slots and staging.residue
-- reads:   staging.slots, pg_locks
create or replace function staging.slot_holders(slots integer[])
returns integer[]
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select array_agg(distinct coalesce(l.pid, 0))
  from pg_locks l
  where l.granted
    and l.pid is distinct from pg_backend_pid()
    and (
      (
        l.locktype = 'relation'
        and l.database = (select d.oid from pg_database d where d.datname = current_database())
        and l.relation in (select staging.slot_table(s.slot) from unnest(slots) s (slot))
      )
      or (l.locktype = 'transactionid' and l.transactionid in (select s.xmax from staging.slots s where s.is_open))
    )
$$;

comment on function staging.slot_holders(integer[]) is 'Process ids of sessions that keep slots of staging from being emptied';
revoke all on function staging.slot_holders(integer[]) from public;
--! EndIncluded functions/staging.slot_holders.sql
--! Included functions/staging.empty_slot.sql
-- staging.empty_slot(slot integer, open_slot integer, everything boolean, waits boolean) -> boolean
--
-- what:    truncates a closed slot of staging.raw_messages, after moving the rows of pending batches to the open slot.
--          Returns true if it did, false if another session's lock prevents it, and null if the slot contains only
--          pending batches.
-- takes:   everything: move and truncate in any case; waits: wait for the lock until lock_timeout, instead of not at
--          all
-- called:  by staging.recycle_slots
-- reads:   staging.batches
-- writes:  staging.raw_messages
-- locks:   the slot, until the transaction ends; nothing if it returns false, because the sub-transaction is rolled
--          back
-- twice:   yes
create or replace function staging.empty_slot(slot integer, open_slot integer, everything boolean, waits boolean)
returns boolean
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  closed_table regclass := staging.slot_table(slot);
  open_table regclass := staging.slot_table(open_slot);
  is_needed boolean := false;
begin
  if not everything then
    execute format(
      'select coalesce(bool_and(exists (
         select from staging.batches b
          where b.batch_id = m.batch_id and b.acked_at is null and b.lost_at is null
       )), false)
         from (select distinct s.batch_id from %s s) m', closed_table
    ) into is_needed;
    -- Rows of rolled-back transactions are in the file but cannot be selected. Postgres counts them, with a delay.
    if is_needed and pg_stat_get_dead_tuples(closed_table) = 0 then
      return null;
    end if;
  end if;

  execute format(
    'lock table %s in access exclusive mode%s',
    closed_table, case when waits then '' else ' nowait' end
  );
  execute format(
    'insert into %s
     select m.*
       from %s m
       join staging.batches b on b.batch_id = m.batch_id
      where b.acked_at is null and b.lost_at is null', open_table, closed_table
  );
  execute format('truncate %s', closed_table);
  return true;
exception when lock_not_available or deadlock_detected then
  return false;
end
$$;

comment on function staging.empty_slot(integer, integer, boolean, boolean) is 'Truncates a closed slot of raw_messages, after moving what is still needed';
revoke all on function staging.empty_slot(integer, integer, boolean, boolean) from public;
--! EndIncluded functions/staging.empty_slot.sql
--! Included functions/staging.recycle_slots.sql
-- staging.recycle_slots(filled_until timestamptz default null)
--   -> (emptied integer, remaining integer, held_by integer[])
--
-- what:    removes bodies that are not needed any more from the disk. Empties the closed slots of staging.raw_messages
--          whose batches are acknowledged, and moves the rows of pending batches to the open slot. Then closes the open
--          slot if it is 20 seconds old and opens an empty one; the next call empties the slot that was closed. A slot
--          that another session has locked is skipped.
-- takes:   filled_until: removes everything that was staged until then. Slots that were opened by then are closed and
--          emptied, whatever their age and content. Call it until remaining is 0.
-- returns: emptied: slots emptied; remaining: slots that should be empty and are not; held_by: process ids of the
--          sessions that hold these, 0 for a prepared transaction
-- called:  by each worker every 10 seconds, and with filled_until when it starts and when it ends
-- reads:   staging.batches
-- writes:  staging.raw_messages, staging.slots
-- locks:   a slot, for as long as it takes to truncate it. Masking queues behind a request for that lock. So it waits
--          for at most a second, for one slot a call, and after a failure only every 20 seconds; in between it tries
--          without waiting.
-- twice:   yes
-- raises:  25000 not READ COMMITTED: it would truncate rows that it does not see
create or replace function staging.recycle_slots(
  filled_until timestamptz default null,
  out emptied integer,
  out remaining integer,
  out held_by integer[]
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '1s'
as $$
declare
  open_slot staging.slots;
  closed staging.slots;
  next_slot integer;
  waits boolean;
  is_emptied boolean;
  slots_left integer[];
begin
  perform masking.require_read_committed();
  emptied := 0;
  -- Only one session recycles at a time.
  select s.* into open_slot from staging.slots s where s.is_open for update skip locked;
  if found then
    for closed in
      select s.*
        from staging.slots s
       where not s.is_open
         and staging.is_filled(s.slot)
       order by s.closed_at
    loop
      -- Do not wait for a slot while another is locked: a loader may hold the first and wait for the second.
      waits := emptied = 0 and coalesce(closed.tried_at < clock_timestamp() - interval '20 seconds', true);
      is_emptied := staging.empty_slot(
        slot => closed.slot,
        open_slot => open_slot.slot,
        everything => filled_until is not null,
        waits => waits
      );
      if is_emptied then
        emptied := emptied + 1;
        update staging.slots s
           set opened_at = clock_timestamp(), closed_at = clock_timestamp(), tried_at = null
         where s.slot = closed.slot;
      elsif is_emptied is null then
        update staging.slots s set tried_at = null where s.slot = closed.slot and s.tried_at is not null;
      elsif waits then
        update staging.slots s set tried_at = clock_timestamp() where s.slot = closed.slot;
      end if;
    end loop;

    -- The size of the file counts, because what rolled-back transactions left must be removed too.
    if staging.is_filled(open_slot.slot)
      and open_slot.opened_at <= coalesce(filled_until, clock_timestamp() - interval '20 seconds')
    then
      -- If no slot is empty, the open one stays open: a slot that another session holds must not receive more rows.
      select s.slot
        into next_slot
        from staging.slots s
       where not s.is_open
         and not staging.is_filled(s.slot)
       order by (s.slot - open_slot.slot + 3) % 3
       limit 1;
      if found then
        update staging.slots s set is_open = false, closed_at = clock_timestamp() where s.slot = open_slot.slot;
        update staging.slots s
           set is_open = true, opened_at = clock_timestamp(), closed_at = null, tried_at = null
         where s.slot = next_slot;
      end if;
    end if;
  end if;

  select array_agg(s.slot)
    into slots_left
    from staging.slots s
   where staging.is_filled(s.slot)
     and case when filled_until is null then s.tried_at is not null else s.opened_at <= filled_until end;
  remaining := coalesce(cardinality(slots_left), 0);
  if remaining > 0 then
    held_by := staging.slot_holders(slots_left);
  end if;
end
$$;

comment on function staging.recycle_slots(timestamptz) is 'Empties the slots of raw_messages whose batches are acknowledged';
revoke all on function staging.recycle_slots(timestamptz) from public;
grant execute on function staging.recycle_slots(timestamptz) to logins_worker;
--! EndIncluded functions/staging.recycle_slots.sql
--! Included functions/staging.residue.sql
-- staging.residue() -> (bodies bigint, oldest_seconds integer, slot_seconds integer, held_by integer[])
--
-- what:    returns what is still on the disk of staging although it is not needed any more.
-- returns: bodies: bodies of batches that are acknowledged, lost or were never submitted; null if a lock on a slot
--          prevented counting; oldest_seconds: how long ago the oldest of these batches was acknowledged or lost;
--          slot_seconds: for how long the oldest slot has waited to be emptied, even if it contains only what
--          rolled-back transactions left; held_by: if a slot waits, who holds slots (staging.slot_holders)
-- called:  by staging.status, and by workers that could not empty staging
-- reads:   staging.slots, staging.batches, staging.raw_messages (one entry of its index for each batch)
-- locks:   the slots, released at once
-- twice:   yes
create or replace function staging.residue(
  out bodies bigint,
  out oldest_seconds integer,
  out slot_seconds integer,
  out held_by integer[]
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '1s'
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
declare
  slot record;
  found_here record;
  oldest timestamptz;
  waits_since timestamptz;
  slots_left integer[] := '{}';
begin
  bodies := 0;
  begin
    for slot in
      select s.*, staging.slot_table(s.slot) as messages
        from staging.slots s
       where staging.is_filled(s.slot)
    loop
      execute format(
        'with recursive present (batch_id) as (
           (select m.batch_id from %1$s m order by m.batch_id limit 1)
           union all
           select (select m.batch_id from %1$s m where m.batch_id > p.batch_id order by m.batch_id limit 1)
             from present p
            where p.batch_id is not null
         )
         select coalesce(
                  sum(coalesce(b.rows, (select count(*) from %1$s m where m.batch_id = p.batch_id))) filter (where e.is_ended),
                  0
                ) as bodies,
                min(coalesce(b.acked_at, b.lost_at)) as ended_at,
                coalesce(bool_or(not e.is_ended), false) as is_needed
           from present p
           left join staging.batches b on b.batch_id = p.batch_id
           cross join lateral (
             select b.batch_id is null or b.acked_at is not null or b.lost_at is not null
           ) e (is_ended)
          where p.batch_id is not null', slot.messages
      ) into found_here;
      bodies := bodies + found_here.bodies;
      oldest := least(oldest, found_here.ended_at);
      if
        found_here.bodies > 0
        or not slot.is_open and (not found_here.is_needed or pg_stat_get_dead_tuples(slot.messages) > 0)
      then
        slots_left := slots_left || slot.slot;
        waits_since := least(waits_since, coalesce(slot.closed_at, found_here.ended_at, slot.opened_at));
      end if;
    end loop;
    -- Roll back the sub-transaction to release its locks on the slots. Otherwise a caller that leaves its transaction
    -- open would prevent the slots from being emptied.
    raise exception 'counted';
  exception
    when raise_exception then
      null;
    when lock_not_available then
      bodies := null;
      slots_left := '{0,1,2}';
  end;

  oldest_seconds := round(extract(epoch from clock_timestamp() - oldest));
  slot_seconds := round(extract(epoch from clock_timestamp() - waits_since));
  if slots_left <> '{}' then
    held_by := staging.slot_holders(slots_left);
  end if;
end
$$;

comment on function staging.residue() is 'What is still on the disk of staging although it is not needed any more';
revoke all on function staging.residue() from public;
grant execute on function staging.residue() to logins_worker;
--! EndIncluded functions/staging.residue.sql

-- The audit log: append-only, linked by hashes. All that follows writes to it.
--! Included tables/audit.events.sql
-- The audit log. Each event contains the hashes of the events before it, so that an edited, removed or added event is
-- detected (audit.verify). It contains no values and no keys.
create table if not exists audit.events (
  event_id bigint generated by default as identity primary key,
  at timestamptz not null,
  actor name not null,
  action text not null,
  details jsonb not null,
  previous_hashes bytea[] not null,
  hash bytea not null
);

-- Finds the event that names another one (audit.is_linked).
create index if not exists events_previous_hashes on audit.events using gin (previous_hashes) with (fastupdate = off);

comment on table audit.events is 'Audit log of requests, approvals, reveals, key actions and erasures; append-only, linked by hashes';
comment on column audit.events.event_id is 'Increases along the links; rolled-back transactions leave gaps';
comment on column audit.events.actor is 'The login (session_user)';
comment on column audit.events.previous_hashes is 'The hashes of all heads that were visible when this event was added';
comment on column audit.events.hash is 'SHA-256 over previous_hashes and the row (audit.hash_of)';

-- The heads: events that no later event names yet, usually one. A new event names all heads that it sees, and replaces
-- them. Row 0 stands for the beginning.
create table if not exists audit.heads (
  event_id bigint primary key,
  hash bytea not null
);

insert into audit.heads (event_id, hash)
select 0, ''
where not exists (select from audit.heads) and not exists (select from audit.events);

comment on table audit.heads is 'Numbers and hashes of the heads of the audit log';
--! EndIncluded tables/audit.events.sql
--! Included functions/audit.hash_of.sql
-- audit.hash_of(event audit.events) -> bytea
--
-- what:    SHA-256 over the hashes of the preceding events (in the binary format of an array) and over the event's
--          number, time (seconds since 1970, with microseconds), actor, action and details as the text of a JSON array.
--          The bytes do not depend on the session's settings. STABLE, so that the planner inlines it in audit.verify.
-- called:  by audit.append, audit.verify and audit.is_linked
-- source:  linked time-stamps: Haber and Stornetta, "How to time-stamp a digital document" (1991)
create or replace function audit.hash_of(event audit.events)
returns bytea
language sql
stable
as $$
  select sha256(
    array_send(event.previous_hashes)
    || convert_to(
         jsonb_build_array(
           event.event_id,
           extract(epoch from event.at)::text,
           event.actor::text,
           event.action,
           event.details
         )::text,
         'UTF8'
       )
  )
$$;

comment on function audit.hash_of(audit.events) is 'Hash of an event, over the hashes of the preceding events';
revoke all on function audit.hash_of(audit.events) from public;
--! EndIncluded functions/audit.hash_of.sql
--! Included functions/audit.is_linked.sql
-- audit.is_linked(event audit.events) -> boolean
--
-- what:    whether an event is part of the audit log: its hash is correct, and a later event names it or it is a head.
--          A row that was merely inserted is not.
-- called:  by unmask.intact_request and unmask.granted
-- reads:   audit.events, audit.heads
-- twice:   yes
create or replace function audit.is_linked(event audit.events)
returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select event.hash = audit.hash_of(event)
     and (
       exists (select from audit.heads h where h.event_id = event.event_id and h.hash = event.hash)
       or exists (
         select
           from audit.events l
          where l.previous_hashes @> array[event.hash]
            -- Written as a difference, so that the planner does not also scan the primary key's index to its end.
            and l.event_id - event.event_id > 0
            and l.hash = audit.hash_of(l)
       )
     )
$$;

comment on function audit.is_linked(audit.events) is 'Whether an event is part of the audit log';
revoke all on function audit.is_linked(audit.events) from public;
--! EndIncluded functions/audit.is_linked.sql
--! Included functions/audit.append.sql
-- audit.append(action text, details jsonb) -> bigint
--
-- what:    adds an event to the audit log in the name of session_user, and returns its number. The event names all
--          heads that this transaction sees, replaces those that it can lock, and becomes a head itself. It never
--          waits: a head that another transaction has locked stays, and later events name it again.
-- called:  by functions of all schemas
-- writes:  audit.events, audit.heads
-- twice:   adds another event
-- raises:  23502 all heads were removed; then nothing is recorded, and nothing is shown
-- source:  a graph like git's history, in which each commit names its parents
create or replace function audit.append(action text, details jsonb)
returns bigint
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  event audit.events;
  seen bigint[];
  seen_id bigint;
begin
  select array_agg(h.event_id), array_agg(h.hash order by h.event_id)
    into seen, event.previous_hashes
    from audit.heads h;
  -- One sub-transaction for all: another session's open transaction can leave thousands of heads.
  begin
    delete from audit.heads h
     using (select l.event_id from audit.heads l where l.event_id = any (seen) for update skip locked) mine
     where h.event_id = mine.event_id;
  exception when serialization_failure then
    -- REPEATABLE READ: an event that this transaction does not see has replaced one of them.
    foreach seen_id in array seen loop
      begin
        delete from audit.heads h
         where h.event_id = (select l.event_id from audit.heads l where l.event_id = seen_id for update skip locked);
      exception when serialization_failure then
        null;
      end;
    end loop;
  end;

  -- The number is taken after the heads are read, so that it is greater than theirs.
  event.event_id := nextval('audit.events_event_id_seq');
  event.at := clock_timestamp();
  event.actor := session_user;
  event.action := append.action;
  event.details := append.details;
  event.hash := audit.hash_of(event);

  insert into audit.events select event.*;
  insert into audit.heads (event_id, hash) values (event.event_id, event.hash);
  return event.event_id;
end
$$;

comment on function audit.append(text, jsonb) is 'Adds an event to the audit log';
revoke all on function audit.append(text, jsonb) from public;
--! EndIncluded functions/audit.append.sql
--! Included functions/audit.make_durable.sql
-- audit.make_durable() -> void
--
-- what:    returns when all that was committed before the call is on this server's disk. With synchronous_commit off, a
--          COMMIT returns earlier, and a crash could remove a request after values were shown because of it. A notice
--          is sent if there are synchronous standbys for which the session does not wait: the request is then durable
--          on this server only, because no function can wait for a standby.
-- called:  by unmask.granted
-- writes:  a WAL record, to flush those before it. Before Postgres 17, which can flush on request, it writes a record
--          that fills a page, because the WAL writer flushes full pages: every wal_writer_delay, or every 25th
--          wal_writer_delay after ten idle seconds.
-- twice:   yes
-- raises:  58030 before Postgres 17: WAL was not flushed within 30 times wal_writer_delay
-- source:  Postgres manual, 28.4 "Asynchronous Commit"; src/backend/postmaster/walwriter.c
create or replace function audit.make_durable()
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  written pg_lsn := pg_current_wal_insert_lsn();
  deadline timestamptz := clock_timestamp() + 30 * current_setting('wal_writer_delay')::interval;
begin
  if current_setting('synchronous_standby_names') <> '' and current_setting('synchronous_commit') in ('off', 'local') then
    raise notice using
      message = 'the request is durable on this server only: this session does not wait for synchronous standbys',
      hint = 'reset synchronous_commit';
  end if;

  if current_setting('server_version_num')::integer >= 170000 then
    -- Dynamic, because Postgres 16 does not have this argument.
    execute 'select pg_logical_emit_message(false, $1, $2, flush => true)' using 'masked-logins', ''::text;
    return;
  end if;
  if pg_current_wal_flush_lsn() < written then
    perform pg_logical_emit_message(false, 'masked-logins', repeat(' ', current_setting('wal_block_size')::integer));
  end if;
  while pg_current_wal_flush_lsn() < written loop
    if clock_timestamp() > deadline then
      raise exception using
        errcode = '58030',
        message = 'the request is not on disk: Postgres has not flushed its write-ahead log',
        hint = 'Check the disk of pg_wal and the process "walwriter", then try again';
    end if;
    perform pg_sleep(0.01);
  end loop;
end
$$;

comment on function audit.make_durable() is 'Returns when all that was committed before is on disk';
revoke all on function audit.make_durable() from public;
--! EndIncluded functions/audit.make_durable.sql
--! Included functions/audit.verify.sql
-- audit.verify(known_event_id bigint default null, known_hash text default null)
--   -> (intact boolean, events bigint, head_event_id bigint, head_hash text, broken_event_id bigint, fault text)
--
-- what:    checks all links of the audit log, and returns that it is intact or the first broken event. Detects events
--          that were edited, removed or added, and a log that was truncated. Does not detect a log that somebody with
--          all rights rebuilt completely, heads included. To detect that too, keep head_event_id and head_hash outside
--          this database, and pass them in a later call.
-- takes:   known_event_id, known_hash: a head that was returned earlier (or only its hash), from a place that the
--          administrators of this database cannot write
-- returns: head_event_id, head_hash: the newest head
-- called:  by auditors
-- reads:   audit.events, audit.heads
-- twice:   yes
create or replace function audit.verify(
  known_event_id bigint default null,
  known_hash text default null,
  out intact boolean,
  out events bigint,
  out head_event_id bigint,
  out head_hash text,
  out broken_event_id bigint,
  out fault text
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  select h.event_id, encode(h.hash, 'hex')
    into head_event_id, head_hash
    from audit.heads h
   order by h.event_id desc
   limit 1;
  select count(*) into events from audit.events;

  with links as materialized (
    select e.event_id, p.hash as previous_hash
      from audit.events e
     cross join unnest(e.previous_hashes) p (hash)
  ),
  faults as (
    select 1 as class, e.event_id, 'it was edited' as fault
      from audit.events e
     where e.hash <> audit.hash_of(e)
    union all
    select 1, l.event_id, 'an event that it names was removed, or does not come before it'
      from links l
      left join audit.events e on e.hash = l.previous_hash
     where l.previous_hash <> ''
       and (e.event_id is null or e.event_id >= l.event_id)
    union all
    select 1, e.event_id, 'it names no event before it'
      from audit.events e
     where cardinality(e.previous_hashes) = 0
    union all
    select 2, h.event_id, 'the log was truncated: a head names this event, and it does not exist'
      from audit.heads h
      left join audit.events e on e.event_id = h.event_id and e.hash = h.hash
     where h.event_id <> 0 and e.event_id is null
    union all
    select 2, 0, 'the heads were removed'
     where not exists (select from audit.heads)
    union all
    -- Last, because the faults above can cause this one too.
    select 3, e.event_id, 'it was added beside the log, or its successor was removed: no later event names it, and it is not a head'
      from audit.events e
      left join links l on l.previous_hash = e.hash and l.event_id > e.event_id
      left join audit.heads h on h.event_id = e.event_id and h.hash = e.hash
     where l.event_id is null and h.event_id is null
  )
  select f.event_id, f.fault
    into broken_event_id, fault
    from faults f
   order by f.class, f.event_id
   limit 1;

  if fault is null
     and (known_event_id is not null or known_hash is not null)
     and not exists (
       select
         from audit.events e
        where e.event_id = coalesce(known_event_id, e.event_id)
          and encode(e.hash, 'hex') = lower(known_hash)
     ) then
    broken_event_id := coalesce(known_event_id, 0);
    fault := 'it is not the known event: the log was rebuilt or truncated';
  end if;
  intact := fault is null;
end
$$;

comment on function audit.verify(bigint, text) is 'Returns that the audit log is intact, or the first broken event';
revoke all on function audit.verify(bigint, text) from public;
grant execute on function audit.verify(bigint, text) to logins_auditor;
--! EndIncluded functions/audit.verify.sql

-- Keys: the key-encryption key, which seals and unseals the database, and the data keys encrypted under it.
--! Included tables/masking.keys.sql
-- The data keys, each wrapped: encrypted under the key-encryption key.
--
-- token:  HMAC key of a field. Its version is the first byte of its tokens. So versions are unique over all fields, and
--         there are at most 255.
-- cipher: password for the ciphertexts of a field, or for quarantined bodies.
create table if not exists masking.keys (
  purpose text not null check (purpose in ('token', 'cipher')),
  version integer not null check (version >= 1 and (purpose <> 'token' or version <= 255)),
  field text not null check (field in ('ip', 'device_id', 'body')),
  state text not null default 'active' check (state in ('active', 'retiring', 'destroyed')),
  wrapped bytea check ((wrapped is null) = (state = 'destroyed')),
  created_at timestamptz not null default now(),
  retiring_at timestamptz,
  destroyed_at timestamptz,
  primary key (purpose, version)
);

create unique index if not exists keys_one_active on masking.keys (purpose, field) where state = 'active';

alter table masking.keys alter column wrapped set statistics 0;

comment on table masking.keys is 'Data keys, encrypted under the key-encryption key';
comment on column masking.keys.state is 'active: encrypts new values; retiring: old values may need it; destroyed: removed';
--! EndIncluded tables/masking.keys.sql
--! Included tables/masking.kek.sql
-- How many times the database was sealed. A sequence has no snapshot, and no lock prevents nextval(). So a seal takes
-- effect at once, in open transactions too (masking.present_kek).
create sequence if not exists masking.seal_count;

-- The first nextval() of a sequence does not change last_value; later ones do.
select setval('masking.seal_count', 1) from masking.seal_count s where not s.is_called;

comment on sequence masking.seal_count is 'Number of times the database was sealed';

-- The key-encryption key (KEK): 32 bytes, one row. It is in use while its seal_count is that of the sequence. Without
-- such a row, the database is sealed.
--
-- UNLOGGED, so that it is not in WAL, base backups or standbys, and is gone after a crash or a restore. It has no CHECK
-- and no statistics, because both would show it. It is inserted through the view masking.kek_inbox.
create unlogged table if not exists masking.kek (
  singleton boolean primary key default true,
  kek bytea not null,
  seal_count bigint not null
);

alter table masking.kek alter column kek set statistics 0;

comment on table masking.kek is 'The key-encryption key while the database is unsealed';
comment on column masking.kek.seal_count is 'Value of masking.seal_count when the key was inserted; if the sequence has another value now, the database is sealed';
--! EndIncluded tables/masking.kek.sql
--! Included tables/masking.kek_history.sql
-- The key-encryption keys that this database has had, by fingerprint, to tell a wrong key from a replaced one.
create table if not exists masking.kek_history (
  fingerprint bytea primary key,
  since_at timestamptz not null default now(),
  replaced_at timestamptz
);

comment on table masking.kek_history is 'Fingerprints of all key-encryption keys that were or are in use';
comment on column masking.kek_history.fingerprint is 'HMAC-SHA256 of a fixed text under the key, the first 8 bytes: reveals nothing of the key';
--! EndIncluded tables/masking.kek_history.sql
--! Included functions/masking.latest_kek.sql
-- masking.latest_kek() -> bytea
--
-- what:    returns the key-encryption key that is in use at this moment, or null. VOLATILE, so that it does not use the
--          snapshot of the calling query: masking.wipe_kek truncates the table and inserts the key again, and an older
--          snapshot sees neither row.
-- called:  by masking.present_kek
-- reads:   masking.kek, masking.seal_count
create or replace function masking.latest_kek()
returns bytea
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
begin
  return (select k.kek from masking.kek k join masking.seal_count s on s.last_value = k.seal_count);
end
$$;

comment on function masking.latest_kek() is 'The key-encryption key in use at this moment, for masking.present_kek';
revoke all on function masking.latest_kek() from public;
--! EndIncluded functions/masking.latest_kek.sql
--! Included functions/masking.present_kek.sql
-- masking.present_kek() -> bytea
--
-- what:    returns the key-encryption key in use, or null while the database is sealed. A key that was there when the
--          database was sealed is not in use any more, even if an old snapshot still sees its row. The snapshot of the
--          calling query is tried first, so that the key matches the wrapped keys that the query sees, whatever a
--          rewrap commits meanwhile.
-- called:  by masking.require_kek, masking.is_sealed and masking.receive_kek
-- reads:   masking.kek, masking.seal_count
create or replace function masking.present_kek()
returns bytea
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
begin
  return coalesce(
    (select k.kek from masking.kek k join masking.seal_count s on s.last_value = k.seal_count),
    masking.latest_kek()
  );
end
$$;

comment on function masking.present_kek() is 'The key-encryption key in use, for functions of masking only';
revoke all on function masking.present_kek() from public;
--! EndIncluded functions/masking.present_kek.sql
--! Included functions/masking.is_sealed.sql
-- masking.is_sealed() -> boolean
--
-- what:    whether no key-encryption key is in use, so that nothing can be masked or revealed
-- called:  by workers, custodians and auditors, and by functions of masking and staging
-- reads:   masking.kek, masking.seal_count
-- twice:   yes
create or replace function masking.is_sealed()
returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select masking.present_kek() is null
$$;

comment on function masking.is_sealed() is 'Whether no key-encryption key is in use';
revoke all on function masking.is_sealed() from public;
grant execute on function masking.is_sealed() to logins_worker, logins_custodian, logins_auditor;
--! EndIncluded functions/masking.is_sealed.sql
--! Included functions/masking.require_kek.sql
-- masking.require_kek() -> bytea
--
-- what:    returns the key-encryption key in use
-- called:  by masking.unwrapped, masking.create_key and masking.receive_next_kek
-- reads:   masking.kek, masking.seal_count
-- raises:  ML001 sealed
create or replace function masking.require_kek()
returns bytea
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
  kek bytea := masking.present_kek();
begin
  if kek is null then
    raise exception using
      errcode = 'ML001',
      message = 'the database is sealed: it does not contain the key-encryption key',
      hint = 'A worker with MASKING_KEK or MASKING_KEK_FILE set unseals it by itself';
  end if;
  return kek;
end
$$;

comment on function masking.require_kek() is 'The key-encryption key in use; ML001 if the database is sealed';
revoke all on function masking.require_kek() from public;
--! EndIncluded functions/masking.require_kek.sql
--! Included functions/masking.unwrapped.sql
-- masking.unwrapped(wrapped bytea) -> bytea
--
-- what:    decrypts a data key with the key-encryption key
-- called:  by functions of masking only. STABLE, never IMMUTABLE: the planner would evaluate an immutable call at plan
--          time, and EXPLAIN would show the key.
-- reads:   masking.kek
-- raises:  ML001 sealed; ML002 the key-encryption key does not decrypt it
create or replace function masking.unwrapped(wrapped bytea)
returns bytea
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
  kek bytea := masking.require_kek();
begin
  return crypto.pgp_sym_decrypt_bytea(wrapped, encode(kek, 'hex'));
exception
  -- pgcrypto's error for a wrong password or a damaged ciphertext.
  when external_routine_invocation_exception then
    raise exception using
      errcode = 'ML002',
      message = 'the key-encryption key does not decrypt the data keys',
      hint = 'A key in masking.keys was changed: see docs/incidents.md';
end
$$;

comment on function masking.unwrapped(bytea) is 'A data key in the clear, for functions of masking only';
revoke all on function masking.unwrapped(bytea) from public;
--! EndIncluded functions/masking.unwrapped.sql
--! Included functions/masking.data_key.sql
-- masking.data_key(purpose text, version integer) -> bytea
--
-- what:    returns a data key in the clear
-- called:  by masking.reencrypt_vault, masking.reencrypt_bodies and masking.retoken_vault
-- reads:   masking.keys, masking.kek
-- raises:  ML001 sealed; ML002 the key-encryption key does not decrypt it
create or replace function masking.data_key(purpose text, version integer)
returns bytea
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
begin
  return (
    select masking.unwrapped(k.wrapped)
      from masking.keys k
     where k.purpose = data_key.purpose
       and k.version = data_key.version
  );
end
$$;

comment on function masking.data_key(text, integer) is 'A data key in the clear, for functions of masking only';
revoke all on function masking.data_key(text, integer) from public;
--! EndIncluded functions/masking.data_key.sql
--! Included functions/masking.active_key.sql
-- masking.active_key(purpose text, field text) -> (version integer, key bytea)
--
-- what:    returns the key that masks new values of a field, in the clear
-- called:  by masking.mask_rows and masking.quarantine_message
-- reads:   masking.keys, masking.kek
-- raises:  ML001 sealed; ML002 the key-encryption key does not decrypt it
create or replace function masking.active_key(purpose text, field text, out version integer, out key bytea)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
  wrapped bytea;
begin
  select k.version, k.wrapped
    into active_key.version, wrapped
    from masking.keys k
   where k.purpose = active_key.purpose
     and k.field = active_key.field
     and k.state = 'active';
  -- Before the first unsealing there are no keys. Then this raises ML001.
  key := masking.unwrapped(wrapped);
end
$$;

comment on function masking.active_key(text, text) is 'The active key of a purpose and field in the clear, for functions of masking only';
revoke all on function masking.active_key(text, text) from public;
--! EndIncluded functions/masking.active_key.sql
--! Included functions/masking.create_key.sql
-- masking.create_key(purpose text, field text) -> integer
--
-- what:    creates a data key from Postgres's random source, stores it encrypted, and returns its version. It is active
--          at once, and the previous active key becomes retiring.
-- called:  by masking.receive_kek at the first unsealing, and by masking.rotate
-- reads:   masking.kek
-- writes:  masking.keys
-- twice:   creates another key
-- raises:  ML001 sealed; ML005 all 255 versions of token keys are used
create or replace function masking.create_key(purpose text, field text)
returns integer
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
  new_version integer;
  kek bytea := masking.require_kek();
begin
  lock table masking.keys in share row exclusive mode;

  select coalesce(max(k.version), 0) + 1
    into new_version
    from masking.keys k
   where k.purpose = create_key.purpose;
  if create_key.purpose = 'token' and new_version > 255 then
    raise exception using
      errcode = 'ML005',
      message = 'no version is left for another token key: a token has one byte for it, and all 255 are used';
  end if;

  update masking.keys k
     set state = 'retiring', retiring_at = now()
   where k.purpose = create_key.purpose
     and k.field = create_key.field
     and k.state = 'active';

  insert into masking.keys (purpose, version, field, wrapped)
  values (
    create_key.purpose,
    new_version,
    create_key.field,
    crypto.pgp_sym_encrypt_bytea(crypto.gen_random_bytes(32), encode(kek, 'hex'), masking.cipher_options())
  );
  return new_version;
end
$$;

comment on function masking.create_key(text, text) is 'Creates a data key, encrypted and active, and returns its version';
revoke all on function masking.create_key(text, text) from public;
--! EndIncluded functions/masking.create_key.sql

-- Unsealing, sealing, and changing the key-encryption key.
--! Included tables/masking.kek_inbox.sql
-- Receives the key-encryption key: COPY masking.kek_inbox FROM STDIN (FORMAT binary), one column of 32 bytes.
--
-- Binary COPY data is in no log: not as a statement, not as a parameter, not in the context of an error. Statement text
-- and bind parameters can be. masking.receive_kek() checks the key before it is stored.
create or replace view masking.kek_inbox as
select null::bytea as kek
where false;

comment on view masking.kek_inbox is 'Inbox for the key-encryption key: unseals the database; shows nothing';
--! EndIncluded tables/masking.kek_inbox.sql
--! Included tables/masking.next_kek_inbox.sql
-- Receives the next key-encryption key: COPY masking.next_kek_inbox FROM STDIN (FORMAT binary), one column of 32 bytes.
-- masking.receive_next_kek() encrypts the data keys under it.
create or replace view masking.next_kek_inbox as
select null::bytea as kek
where false;

comment on view masking.next_kek_inbox is 'Inbox for the next key-encryption key: replaces the present one; shows nothing';
--! EndIncluded tables/masking.next_kek_inbox.sql
--! Included functions/masking.fingerprint_of.sql
-- masking.fingerprint_of(kek bytea) -> bytea
--
-- what:    returns 8 bytes that identify a key-encryption key and reveal nothing of it
-- called:  by masking.refuse_other_kek, masking.receive_kek and masking.receive_next_kek
-- raises:  ML002 the key is not 32 bytes
create or replace function masking.fingerprint_of(kek bytea)
returns bytea
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
begin
  if kek is null or octet_length(kek) <> 32 then
    raise exception using errcode = 'ML002', message = 'a key-encryption key must be 32 bytes';
  end if;
  return substr(crypto.hmac('masked-logins key-encryption key'::bytea, kek, 'sha256'), 1, 8);
end
$$;

comment on function masking.fingerprint_of(bytea) is 'Fingerprint of a key-encryption key';
revoke all on function masking.fingerprint_of(bytea) from public;
--! EndIncluded functions/masking.fingerprint_of.sql
--! Included functions/masking.refuse_other_kek.sql
-- masking.refuse_other_kek(kek bytea) -> void
--
-- what:    refuses a key-encryption key that is not the key of this database, and says which one is. A database that
--          has had no key accepts any.
-- called:  by masking.receive_kek
-- reads:   masking.kek_history, masking.kek
-- raises:  ML002 while the database is sealed, ML003 while it is not: another key, or a replaced one; ML002 not 32
--          bytes
create or replace function masking.refuse_other_kek(kek bytea)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
  given bytea := masking.fingerprint_of(kek);
  wanted masking.kek_history;
  replaced_at timestamptz := (select h.replaced_at from masking.kek_history h where h.fingerprint = given);
  refusal text;
  advice constant text := 'Compare it with the keys in your secret store: the command "keys fingerprint" shows their fingerprints';
begin
  select h.* into wanted from masking.kek_history h where h.replaced_at is null;
  if wanted.fingerprint is null or wanted.fingerprint = given then
    return;
  end if;
  refusal := format(
    'the key-encryption key with fingerprint %s %s; the key of this database has fingerprint %s, in use since %s UTC',
    encode(given, 'hex'),
    coalesce(
      format('was replaced at %s UTC', date_trunc('second', replaced_at at time zone 'UTC')),
      'is not the key of this database'
    ),
    encode(wanted.fingerprint, 'hex'),
    date_trunc('second', wanted.since_at at time zone 'UTC')
  );
  if masking.is_sealed() then
    raise exception using errcode = 'ML002', message = refusal, hint = advice;
  end if;
  raise exception using errcode = 'ML003', message = refusal, hint = advice;
end
$$;

comment on function masking.refuse_other_kek(bytea) is 'Refuses a key-encryption key that is not the key of this database';
revoke all on function masking.refuse_other_kek(bytea) from public;
--! EndIncluded functions/masking.refuse_other_kek.sql
--! Included functions/masking.receive_kek.sql
-- masking.receive_kek() -> trigger, and the trigger that unseals
--
-- what:    checks the fingerprint of a key-encryption key that was copied into masking.kek_inbox and that it decrypts
--          all data keys, and stores it. The first key that a database receives becomes its key, and the data keys are
--          created. A key that is in use already is only compared, because each worker sends its key when it starts.
-- called:  by COPY masking.kek_inbox, as logins_worker or logins_custodian
-- reads:   masking.keys, masking.kek_history, masking.seal_count
-- writes:  masking.kek, audit.events; masking.keys and masking.kek_history at the first unsealing
-- twice:   yes: the key that is in use is accepted again, and nothing changes
-- raises:  42501 not a member of a role that may unseal; ML002 not the key of this database, a replaced one, or not 32
--          bytes; ML003 another or a replaced key while the database is unsealed; 55P03 another session has been
--          unsealing for two seconds: try again
create or replace function masking.receive_kek()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set lock_timeout = '2s'
set work_mem = '256MB'
as $$
begin
  perform masking.require_member('logins_worker', 'logins_custodian');
  -- First without a lock, so that a worker learns whether its key is correct even if another transaction holds the
  -- table.
  perform masking.refuse_other_kek(new.kek);
  if new.kek = masking.present_kek() then
    return null;
  end if;

  -- One at a time: two workers that start at the same time both unseal.
  lock table masking.kek in share row exclusive mode;
  perform masking.refuse_other_kek(new.kek);
  if new.kek = masking.present_kek() then
    return null;
  end if;

  -- A row that is still there was sealed while others held the table.
  delete from masking.kek;
  insert into masking.kek (kek, seal_count) select new.kek, s.last_value from masking.seal_count s;
  perform masking.unwrapped(k.wrapped) from masking.keys k where k.state <> 'destroyed';

  if not exists (select from masking.keys) then
    insert into masking.kek_history (fingerprint) values (masking.fingerprint_of(new.kek));
    perform masking.create_key('token', 'ip');
    perform masking.create_key('token', 'device_id');
    perform masking.create_key('cipher', 'ip');
    perform masking.create_key('cipher', 'device_id');
    perform masking.create_key('cipher', 'body');
  end if;
  perform audit.append('unseal', '{}');
  return new;
end
$$;

comment on function masking.receive_kek() is 'Checks and stores the key-encryption key copied into masking.kek_inbox';
revoke all on function masking.receive_kek() from public;

create or replace trigger receive_kek
instead of insert on masking.kek_inbox
for each row execute function masking.receive_kek();
--! EndIncluded functions/masking.receive_kek.sql
--! Included functions/masking.receive_next_kek.sql
-- masking.receive_next_kek() -> trigger, and the trigger that changes the key-encryption key
--
-- what:    encrypts all data keys under the key that was copied into masking.next_kek_inbox, and replaces the present
--          key by it, in one transaction. So after a crash the data keys are encrypted under one of the two keys, and
--          unsealing tells which.
-- called:  by COPY masking.next_kek_inbox, as logins_custodian (the command keys rewrap)
-- reads:   masking.kek
-- writes:  masking.keys, masking.kek, masking.kek_history, audit.events
-- twice:   yes: with the key that is in use, nothing changes
-- raises:  42501 not a member of a role that may rewrap; ML001 sealed; ML002 not 32 bytes, or a key that was replaced
--          before; 55P03 batches or another transaction held the keys for five seconds: try again
create or replace function masking.receive_next_kek()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set lock_timeout = '5s'
set work_mem = '256MB'
as $$
declare
  present bytea;
  next_fingerprint bytea;
begin
  perform masking.require_member('logins_custodian');
  lock table masking.kek, masking.keys in share row exclusive mode;
  present := masking.require_kek();
  if present = new.kek then
    return null;
  end if;
  next_fingerprint := masking.fingerprint_of(new.kek);
  if exists (select from masking.kek_history h where h.fingerprint = next_fingerprint) then
    raise exception using
      errcode = 'ML002',
      message = 'this key-encryption key was in use before and has been replaced',
      hint = 'Create a new one: openssl rand -hex 32';
  end if;

  update masking.keys k
     set wrapped = crypto.pgp_sym_encrypt_bytea(
           masking.unwrapped(k.wrapped), encode(new.kek, 'hex'), masking.cipher_options()
         )
   where k.state <> 'destroyed';
  -- The dead row stays in the file until a worker's heartbeat wipes it: queries under way still read it.
  update masking.kek set kek = new.kek;
  update masking.kek_history set replaced_at = now() where replaced_at is null;
  insert into masking.kek_history (fingerprint) values (next_fingerprint);
  perform audit.append('rewrap', '{}');
  return new;
end
$$;

comment on function masking.receive_next_kek() is 'Encrypts the data keys under the key copied into masking.next_kek_inbox';
revoke all on function masking.receive_next_kek() from public;

create or replace trigger receive_next_kek
instead of insert on masking.next_kek_inbox
for each row execute function masking.receive_next_kek();
--! EndIncluded functions/masking.receive_next_kek.sql
--! Included functions/masking.seal.sql
-- masking.seal() -> void
--
-- what:    takes the key-encryption key out of use and removes it, so that masking and revealing fail with ML001 until
--          somebody unseals. It takes effect at once and in all transactions, whatever locks others hold, and a
--          ROLLBACK does not undo it. If another session locks the key's table for longer than half a second, a notice
--          says which, and the key's bytes are removed when that session has ended (masking.wipe_kek). Running workers
--          that have the key unseal within seconds: stop them first to keep the database sealed.
-- called:  by custodians
-- writes:  masking.seal_count, masking.kek (TRUNCATE, which removes it from the disk), audit.events
-- twice:   yes
create or replace function masking.seal()
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '500ms'
as $$
declare
  holders text;
begin
  perform nextval('masking.seal_count');
  perform audit.append('seal', '{}');
  begin
    truncate masking.kek;
    return;
  exception when lock_not_available or object_in_use then
    select string_agg(distinct coalesce(format('%s (process %s)', a.usename, a.pid), 'a prepared transaction'), ', ')
      into holders
      from pg_locks l
      left join pg_stat_activity a on a.pid = l.pid
     where l.locktype = 'relation'
       and l.database = (select d.oid from pg_database d where d.datname = current_database())
       and l.relation = 'masking.kek'::regclass
       and l.granted
       and l.pid is distinct from pg_backend_pid();
  end;

  begin
    lock table masking.kek in row exclusive mode nowait;
    delete from masking.kek;
  exception when lock_not_available or serialization_failure then
    -- The key is out of use in any case.
    null;
  end;
  raise notice using
    message = format('the database is sealed; the key stays on disk until these sessions end, which lock its table: %s', coalesce(holders, 'unknown')),
    hint = 'End their transactions (pg_terminate_backend; rollback prepared). Then a worker, or masking.seal() again, removes the key';
end
$$;

comment on function masking.seal() is 'Takes the key-encryption key out of use and removes it from the database';
revoke all on function masking.seal() from public;
grant execute on function masking.seal() to logins_custodian;
--! EndIncluded functions/masking.seal.sql
--! Included functions/masking.wipe_kek.sql
-- masking.wipe_kek() -> boolean
--
-- what:    removes from the disk what key-encryption keys that are out of use left in the file of masking.kek: a row
--          that masking.seal could not remove, and dead rows. The key in use stays. Returns whether nothing is left. It
--          returns false if another session locks the table for longer than half a second, and during ten seconds after
--          a rewrap, because queries that began before may still need the previous key.
-- called:  by workers, at each heartbeat; by custodians
-- reads:   masking.kek, masking.seal_count, masking.kek_history
-- writes:  masking.kek (TRUNCATE, which frees the file; other sessions wait for at most half a second)
-- twice:   yes
create or replace function masking.wipe_kek()
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set lock_timeout = '500ms'
as $$
declare
  kept masking.kek;
begin
  -- If the key in use is the first row of the file, nothing else is in it.
  if pg_relation_size('masking.kek') = 0 or exists (
    select
      from masking.kek k
      join masking.seal_count s on s.last_value = k.seal_count
     where k.ctid = '(0,1)'
  ) then
    return true;
  end if;
  -- In another isolation level, this transaction may not see the key that is in use now.
  if current_setting('transaction_isolation') <> 'read committed' then
    return false;
  end if;

  lock table masking.kek in access exclusive mode;
  select k.*
    into kept
    from masking.kek k
    join masking.seal_count s on s.last_value = k.seal_count;
  if kept.kek is not null and exists (
    select from masking.kek_history h where h.replaced_at > clock_timestamp() - interval '10 seconds'
  ) then
    return false;
  end if;
  truncate masking.kek;
  insert into masking.kek select kept.* where kept.kek is not null;
  return true;
exception when lock_not_available or object_in_use then
  return false;
end
$$;

comment on function masking.wipe_kek() is 'Removes from the disk what is left of key-encryption keys that are out of use';
revoke all on function masking.wipe_kek() from public;
grant execute on function masking.wipe_kek() to logins_worker, logins_custodian;
--! EndIncluded functions/masking.wipe_kek.sql
--! Included functions/masking.list_keks.sql
-- masking.list_keks() -> setof (fingerprint text, since_at timestamptz, replaced_at timestamptz)
--
-- what:    returns the fingerprints of all key-encryption keys that this database has had, the newest first. The one
--          that was not replaced unseals the database.
-- called:  by custodians and auditors
-- reads:   masking.kek_history
create or replace function masking.list_keks()
returns table (fingerprint text, since_at timestamptz, replaced_at timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select encode(h.fingerprint, 'hex'), h.since_at, h.replaced_at
  from masking.kek_history h
  order by h.replaced_at desc nulls first
$$;

comment on function masking.list_keks() is 'Fingerprints of all key-encryption keys that were or are in use';
revoke all on function masking.list_keks() from public;
grant execute on function masking.list_keks() to logins_custodian, logins_auditor;
--! EndIncluded functions/masking.list_keks.sql
--! Included functions/masking.list_keys.sql
-- masking.list_keys() -> setof (purpose, field, version, state, created_at, retiring_at, destroyed_at)
--
-- what:    returns all data keys, without the key itself
-- called:  by custodians and auditors
-- reads:   masking.keys
create or replace function masking.list_keys()
returns table (
  purpose text,
  field text,
  version integer,
  state text,
  created_at timestamptz,
  retiring_at timestamptz,
  destroyed_at timestamptz
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select k.purpose, k.field, k.version, k.state, k.created_at, k.retiring_at, k.destroyed_at
  from masking.keys k
  order by k.purpose, k.field, k.version
$$;

comment on function masking.list_keys() is 'All data keys, without the key itself';
revoke all on function masking.list_keys() from public;
grant execute on function masking.list_keys() to logins_custodian, logins_auditor;
--! EndIncluded functions/masking.list_keys.sql

-- Decryption: values by token, bodies by message id, and the tokens that a value has had.
--! Included tables/masking.retokened.sql
-- Which token became which when a token key was rotated. With this, requests made before the rotation, and tokens noted
-- elsewhere, stay valid.
create table if not exists masking.retokened (
  old_token uuid primary key,
  new_token uuid not null
);

create index if not exists retokened_new_token on masking.retokened (new_token);

comment on table masking.retokened is 'Old tokens and the tokens that replaced them; kept until the old key is destroyed';
--! EndIncluded tables/masking.retokened.sql
--! Included functions/masking.current_tokens.sql
-- masking.current_tokens(tokens uuid[]) -> setof (asked uuid, token uuid)
--
-- what:    returns, for each token, the token under which its value is in the vault now: the same token, or the one
--          that a rotation of the token key replaced it with. Tokens of erased values are left out.
-- called:  by unmask.request, unmask.reveal and masking.delete_unreferenced
-- reads:   masking.vault, masking.retokened
create or replace function masking.current_tokens(tokens uuid[])
returns table (asked uuid, token uuid)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select a.asked, v.token
  from (
    select distinct t.asked, coalesce(r.new_token, t.asked) as token
    from unnest(tokens) as t (asked)
    left join masking.retokened r on r.old_token = t.asked
  ) a
  join masking.vault v on v.token = a.token
$$;

comment on function masking.current_tokens(uuid[]) is 'The tokens under which values are in the vault now';
revoke all on function masking.current_tokens(uuid[]) from public;
--! EndIncluded functions/masking.current_tokens.sql
--! Included functions/masking.decrypted_value.sql
-- masking.decrypted_value(token uuid, ciphertext bytea, password text, key_version integer, key bytea) -> text
--
-- what:    returns the value of a vault entry, in the clear, if the entry's token belongs to it
-- takes:   password: of the cipher key; key_version, key: the token key; null for keys that do not exist
-- called:  by masking.decrypt_values
-- raises:  ML004 the ciphertext was changed, or swapped with that of another entry
create or replace function masking.decrypted_value(
  token uuid,
  ciphertext bytea,
  password text,
  key_version integer,
  key bytea
)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
  padded bytea;
  value text;
  digest bytea;
begin
  padded := rtrim(crypto.pgp_sym_decrypt_bytea(ciphertext, password), decode('00', 'hex'));
  value := convert_from(substr(padded, 1, greatest(octet_length(padded) - 1, 0)), 'UTF8');
  digest := crypto.hmac(convert_to(value, 'UTF8'), key, 'sha256');
  if masking.token_of(digest, key_version) is distinct from token then
    raise external_routine_invocation_exception;
  end if;
  return value;
-- pgcrypto's error, if the integrity check fails or it is not an OpenPGP message; or the value is not text.
exception when external_routine_invocation_exception or character_not_in_repertoire then
  raise exception using
    errcode = 'ML004',
    message = format('the vault entry of token %s was changed, or contains the ciphertext of another value', token),
    hint = 'Restore it from a backup of masking.vault, and find out who changed it';
end
$$;

comment on function masking.decrypted_value(uuid, bytea, text, integer, bytea) is 'The value of a vault entry in the clear, checked';
revoke all on function masking.decrypted_value(uuid, bytea, text, integer, bytea) from public;
--! EndIncluded functions/masking.decrypted_value.sql
--! Included functions/masking.decrypt_values.sql
-- masking.decrypt_values(tokens uuid[]) -> setof (token uuid, value text)
--
-- what:    returns the values of vault entries, in the clear. Each value is checked: the token computed from it must be
--          the entry's token.
-- takes:   tokens: as they are in the vault now (masking.current_tokens)
-- called:  by unmask.reveal, masking.reencrypt_vault and masking.retoken_vault. STABLE, so that it sees the vault as
--          the query that found the tokens does, whatever a rotation commits meanwhile.
-- reads:   masking.vault, masking.keys, masking.kek
-- keeps:   values in memory (work_mem), off the disk
-- raises:  ML001 sealed; ML002 wrong key-encryption key; ML004 a ciphertext was changed or swapped
create or replace function masking.decrypt_values(tokens uuid[])
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
      select k.purpose, k.version, k.unwrapped as key, encode(k.unwrapped, 'hex') as password
      from (
        select k.purpose, k.version, masking.unwrapped(k.wrapped) as unwrapped
        from masking.keys k
        where k.state <> 'destroyed'
        offset 0
      ) k
    )
    select v.token, masking.decrypted_value(v.token, v.ciphertext, c.password, t.version, t.key)
    from unnest(tokens) asked
    join masking.vault v on v.token = asked
    left join keys t on t.purpose = 'token' and t.version = get_byte(uuid_send(v.token), 0)
    left join keys c on c.purpose = 'cipher' and c.version = v.key_version;
end
$$;

comment on function masking.decrypt_values(uuid[]) is 'Values of vault entries in the clear, checked';
revoke all on function masking.decrypt_values(uuid[]) from public;
--! EndIncluded functions/masking.decrypt_values.sql
--! Included functions/masking.decrypt_bodies.sql
-- masking.decrypt_bodies(message_ids uuid[]) -> setof (message_id uuid, body bytea)
--
-- what:    returns the bodies of quarantined messages, in the clear
-- called:  by unmask.reveal, staging.replay, masking.reencrypt_bodies and masking.user_of_body
-- reads:   staging.quarantine, masking.keys, masking.kek
-- keeps:   bodies in memory (work_mem), off the disk
-- raises:  ML001 sealed; ML002 wrong key-encryption key; ML004 a ciphertext was changed
create or replace function masking.decrypt_bodies(message_ids uuid[])
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
    message = 'a ciphertext in quarantine was changed',
    hint = 'Restore staging.quarantine from a backup, and find out who changed it';
end
$$;

comment on function masking.decrypt_bodies(uuid[]) is 'Bodies of quarantined messages in the clear';
revoke all on function masking.decrypt_bodies(uuid[]) from public;
--! EndIncluded functions/masking.decrypt_bodies.sql
--! Included functions/masking.body_as_text.sql
-- masking.body_as_text(body bytea) -> text
--
-- what:    returns a body for people to read: as text, or as \x and hexadecimal digits if it is not text
-- called:  by unmask.reveal
-- raises:  nothing that a body can cause
create or replace function masking.body_as_text(body bytea)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
begin
  return convert_from(body, 'UTF8');
exception when character_not_in_repertoire then
  return chr(92) || 'x' || encode(body, 'hex');
end
$$;

comment on function masking.body_as_text(bytea) is 'A body as text, or as hexadecimal digits';
revoke all on function masking.body_as_text(bytea) from public;
--! EndIncluded functions/masking.body_as_text.sql
--! Included functions/masking.tokens_of_value.sql
-- masking.tokens_of_value(field text, value text) -> setof uuid
--
-- what:    returns the tokens that a value has or would have: one for each token key of the field that is not destroyed
-- called:  by unmask.request_find and unmask.find
-- reads:   masking.keys, masking.kek
-- raises:  ML001 sealed; ML002 the key-encryption key does not decrypt the keys
create or replace function masking.tokens_of_value(field text, value text)
returns setof uuid
language sql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
  select masking.token_of(d.digest, d.version)
  from (
    select k.version, crypto.hmac(convert_to(c.canonical, 'UTF8'), masking.unwrapped(k.wrapped), 'sha256') as digest
    from masking.keys k
    cross join (
      -- From a column: masking.canonical_ip() must not be given a constant.
      select case when tokens_of_value.field = 'ip' then masking.canonical_ip(v.value) else nullif(v.value, '') end as canonical
      from unnest(array[tokens_of_value.value]) as v (value)
      offset 0
    ) c
    where k.purpose = 'token'
      and k.field = tokens_of_value.field
      and k.state <> 'destroyed'
      and c.canonical is not null
    offset 0
  ) d
$$;

comment on function masking.tokens_of_value(text, text) is 'The tokens that a value has or would have';
revoke all on function masking.tokens_of_value(text, text) from public;
--! EndIncluded functions/masking.tokens_of_value.sql

-- Revealing: who may see how much, requests and approvals, and what is shown on a request.
--! Included tables/unmask.policy.sql
-- How many values the members of a role may reveal. If several rows apply to a login, the one that allows the most values
-- in a request counts. Only logins_owner changes it (docs/dba-guide.md).
create table if not exists unmask.policy (
  role_name name primary key,
  values_per_request integer not null check (values_per_request > 0),
  values_per_day integer not null check (values_per_day > 0),
  approval_above integer not null check (approval_above >= 0),
  lifetime interval not null check (lifetime > interval '0' and lifetime <= interval '30 days')
);

insert into unmask.policy (role_name, values_per_request, values_per_day, approval_above, lifetime)
values ('logins_unmasker', 10000, 50000, 100, interval '1 day')
on conflict do nothing;

comment on table unmask.policy is 'Limits of requests, by role';
comment on column unmask.policy.values_per_day is 'Values that all members of the role together may request on a day (UTC)';
comment on column unmask.policy.approval_above is 'A request for more values than this needs an approval';
comment on column unmask.policy.lifetime is 'How long after a request its values may be revealed';
--! EndIncluded tables/unmask.policy.sql
--! Included tables/unmask.requests.sql
-- Requests: who wants to see which values, and why. Committed before anything is shown. Append-only
-- (audit.refuse_change).
create table if not exists unmask.requests (
  request_id uuid primary key default gen_random_uuid(),
  kind text not null check (kind in ('ip', 'device_id', 'user', 'body', 'find')),
  tokens uuid[] not null,
  reason text not null,
  subject text,
  requested_by name not null default session_user,
  role_name name not null,
  requested_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz not null,
  needs_approval boolean not null,
  xid xid8 not null default pg_current_xact_id(),
  event_id bigint not null
);

comment on table unmask.requests is 'Requests to reveal values';
comment on column unmask.requests.kind is 'What tokens contains: tokens of a field, of a user''s logins, ids of quarantined messages, or tokens to find';
comment on column unmask.requests.subject is 'The user, if kind is user; the field, if kind is find';
comment on column unmask.requests.role_name is 'The role whose policy applied';
comment on column unmask.requests.xid is 'Transaction of the request; values are not shown before it is committed';
comment on column unmask.requests.event_id is 'Event in audit.events that contains the digest of this row';
--! EndIncluded tables/unmask.requests.sql
--! Included tables/unmask.approvals.sql
-- Approvals of requests. Append-only (audit.refuse_change).
create table if not exists unmask.approvals (
  request_id uuid primary key references unmask.requests,
  approved_by name not null default session_user,
  approved_at timestamptz not null default clock_timestamp(),
  digest bytea not null,
  event_id bigint not null
);

comment on table unmask.approvals is 'Approvals of requests';
comment on column unmask.approvals.digest is 'Digest of the request as it was approved';
comment on column unmask.approvals.event_id is 'Event of the approval in audit.events';
--! EndIncluded tables/unmask.approvals.sql
--! Included tables/unmask.pending_requests.sql
-- Requests that the login can act on now: an unmasker sees their own, an approver those that need approval. An approver
-- sees whose or which tokens are requested, and no value.
create or replace view unmask.pending_requests
with (security_barrier) as
select
  r.request_id,
  r.kind,
  r.subject,
  cardinality(r.tokens) as value_count,
  r.reason,
  r.requested_by,
  r.requested_at,
  r.expires_at,
  r.needs_approval,
  a.approved_by,
  a.approved_at,
  r.tokens
from unmask.requests r
left join unmask.approvals a on a.request_id = r.request_id
where r.expires_at > now()
  and (
    r.requested_by = session_user
    or (
      r.needs_approval
      and a.request_id is null
      and pg_has_role(session_user, 'logins_approver', 'member')
    )
  );

comment on view unmask.pending_requests is 'The login''s own requests, and for approvers those that wait for approval';
--! EndIncluded tables/unmask.pending_requests.sql
--! Included functions/audit.refuse_change.sql
-- audit.refuse_change() -> trigger, and the triggers that make tables append-only
--
-- what:    refuses UPDATE, DELETE and TRUNCATE, to the owner too
-- called:  by triggers on audit.events, unmask.requests and unmask.approvals
-- writes:  nothing
-- twice:   yes
-- raises:  ML201 always
create or replace function audit.refuse_change()
returns trigger
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using
    errcode = 'ML201',
    message = format('%I.%I is append-only: its rows cannot be changed or removed', tg_table_schema, tg_table_name);
end
$$;

comment on function audit.refuse_change() is 'Refuses to change rows of an append-only table';
revoke all on function audit.refuse_change() from public;

create or replace trigger refuse_change before update or delete on audit.events
for each row execute function audit.refuse_change();
create or replace trigger refuse_truncate before truncate on audit.events
for each statement execute function audit.refuse_change();

create or replace trigger refuse_change before update or delete on unmask.requests
for each row execute function audit.refuse_change();
create or replace trigger refuse_truncate before truncate on unmask.requests
for each statement execute function audit.refuse_change();

create or replace trigger refuse_change before update or delete on unmask.approvals
for each row execute function audit.refuse_change();
create or replace trigger refuse_truncate before truncate on unmask.approvals
for each statement execute function audit.refuse_change();
--! EndIncluded functions/audit.refuse_change.sql
--! Included functions/unmask.audit_policy.sql
-- unmask.audit_policy() -> trigger, and the trigger on unmask.policy
--
-- what:    records each change of the policy in the audit log
-- called:  by the trigger
-- writes:  audit.events
-- twice:   adds another event
create or replace function unmask.audit_policy()
returns trigger
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  perform audit.append(
    'policy ' || lower(tg_op),
    jsonb_build_object('before', to_jsonb(old), 'after', to_jsonb(new))
  );
  return coalesce(new, old);
end
$$;

comment on function unmask.audit_policy() is 'Records changes of the policy in the audit log';
revoke all on function unmask.audit_policy() from public;

create or replace trigger audit_policy after insert or update or delete on unmask.policy
for each row execute function unmask.audit_policy();
--! EndIncluded functions/unmask.audit_policy.sql
--! Included functions/unmask.digest_of.sql
-- unmask.digest_of(request unmask.requests) -> bytea
--
-- what:    SHA-256 over all columns of a request, so that a request that was changed later is detected. event_id is
--          left out, because the event contains this digest.
-- called:  by unmask.create_request, unmask.intact_request, unmask.approve and unmask.granted
create or replace function unmask.digest_of(request unmask.requests)
returns bytea
language sql
immutable
as $$
  select sha256(convert_to(
    jsonb_build_array(
      request.request_id,
      request.kind,
      request.tokens,
      request.reason,
      request.subject,
      request.requested_by::text,
      request.role_name::text,
      extract(epoch from request.requested_at)::text,
      extract(epoch from request.expires_at)::text,
      request.needs_approval,
      request.xid::text
    )::text,
    'UTF8'
  ))
$$;

comment on function unmask.digest_of(unmask.requests) is 'Digest of all columns of a request';
revoke all on function unmask.digest_of(unmask.requests) from public;
--! EndIncluded functions/unmask.digest_of.sql
--! Included functions/unmask.policy_of_login.sql
-- unmask.policy_of_login() -> unmask.policy
--
-- what:    returns the row of the policy that applies to session_user: of the roles that it is a member of, the one
--          that allows the most values in a request
-- called:  by unmask.create_request and unmask.distinct_tokens
-- reads:   unmask.policy
-- raises:  ML106 no row applies to the login
create or replace function unmask.policy_of_login()
returns unmask.policy
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  policy unmask.policy;
begin
  select p.*
    into policy
    from unmask.policy p
    join pg_roles r on r.rolname = p.role_name
   where pg_has_role(session_user, r.oid, 'member')
   order by p.values_per_request desc, p.role_name
   limit 1;
  if not found then
    raise exception using errcode = 'ML106', message = 'no row of unmask.policy applies to this login';
  end if;
  return policy;
end
$$;

comment on function unmask.policy_of_login() is 'The limits that apply to the login';
revoke all on function unmask.policy_of_login() from public;
--! EndIncluded functions/unmask.policy_of_login.sql
--! Included functions/unmask.distinct_tokens.sql
-- unmask.distinct_tokens(tokens uuid[]) -> uuid[]
--
-- what:    returns the tokens of a request, sorted, without duplicates and nulls, if the policy allows that many. A
--          null stands for a value that was absent or has been erased. The length of the array is checked first.
-- called:  by unmask.request, unmask.request_quarantined and unmask.create_request
-- reads:   unmask.policy
-- raises:  ML106 more values than the policy allows in a request, or more than 100000 elements with duplicates and
--          nulls
create or replace function unmask.distinct_tokens(tokens uuid[])
returns uuid[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  policy unmask.policy := unmask.policy_of_login();
  wanted uuid[];
begin
  if cardinality(tokens) > greatest(policy.values_per_request, 100000) then
    raise exception using
      errcode = 'ML106',
      message = format('the request lists %s values, and the policy allows %s in a request', cardinality(tokens), policy.values_per_request),
      hint = 'List each value once, with array(select distinct …), or make several requests';
  end if;

  wanted := array(select distinct t from unnest(tokens) t where t is not null order by t);
  if cardinality(wanted) > policy.values_per_request then
    raise exception using
      errcode = 'ML106',
      message = format('the request is for %s values, and the policy allows %s in a request', cardinality(wanted), policy.values_per_request),
      hint = 'Request fewer values, or make several requests';
  end if;
  return wanted;
end
$$;

comment on function unmask.distinct_tokens(uuid[]) is 'The tokens of a request, without duplicates and nulls, if the policy allows that many';
revoke all on function unmask.distinct_tokens(uuid[]) from public;
--! EndIncluded functions/unmask.distinct_tokens.sql
--! Included functions/unmask.create_request.sql
-- unmask.create_request(kind text, tokens uuid[], reason text, subject text) -> uuid
--
-- what:    checks a request against the policy, stores it, records it in the audit log, and returns its id. Nothing is
--          shown before the transaction is committed (unmask.granted).
-- called:  by unmask.request, request_user, request_quarantined and request_find
-- reads:   unmask.policy
-- writes:  unmask.requests, audit.events
-- twice:   creates another request
-- raises:  ML106 over a limit of the policy, or no policy applies to the login; ML110 no reason, or nothing to reveal
create or replace function unmask.create_request(kind text, tokens uuid[], reason text, subject text)
returns uuid
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  policy unmask.policy;
  request unmask.requests;
  today bigint;
begin
  if coalesce(btrim(reason), '') = '' or length(reason) > 1000 then
    raise exception using
      errcode = 'ML110',
      message = 'a request needs a reason of at most 1000 characters',
      hint = 'Name the case: reason => ''INC-4711 account takeover''';
  end if;

  request.tokens := unmask.distinct_tokens(tokens);
  if request.tokens = '{}' then
    raise exception using
      errcode = 'ML110',
      message = 'there is nothing to reveal: these logins have no tokens, or there are no logins',
      hint = 'A null token means that the value was absent or has been erased';
  end if;
  policy := unmask.policy_of_login();

  -- All requests of the role on this day count, if they are committed. unmask.granted checks again.
  select coalesce(sum(cardinality(r.tokens)), 0)
    into today
    from unmask.requests r
   where r.role_name = policy.role_name
     and r.requested_at >= date_trunc('day', clock_timestamp(), 'UTC');
  if today + cardinality(request.tokens) > policy.values_per_day then
    raise exception using
      errcode = 'ML106',
      message = format('members of %s have requested %s values today, and the policy allows %s a day', policy.role_name, today, policy.values_per_day),
      hint = 'The day ends at midnight UTC';
  end if;

  request.request_id := gen_random_uuid();
  request.kind := create_request.kind;
  request.reason := btrim(create_request.reason);
  request.subject := create_request.subject;
  request.requested_by := session_user;
  request.role_name := policy.role_name;
  request.requested_at := clock_timestamp();
  request.expires_at := request.requested_at + policy.lifetime;
  request.needs_approval := cardinality(request.tokens) > policy.approval_above;
  request.xid := pg_current_xact_id();
  request.event_id := audit.append(
    'request',
    jsonb_build_object(
      'request_id', request.request_id,
      'kind', request.kind,
      'values', cardinality(request.tokens),
      'reason', request.reason,
      'needs_approval', request.needs_approval,
      'digest', encode(unmask.digest_of(request), 'hex')
    )
  );
  insert into unmask.requests select request.*;

  if request.needs_approval then
    raise notice using message = format(
      'the request is for more than %s values: an approver must run select unmask.approve(%L)',
      policy.approval_above, request.request_id
    );
  end if;
  return request.request_id;
end
$$;

comment on function unmask.create_request(text, uuid[], text, text) is 'Checks a request against the policy and stores it';
revoke all on function unmask.create_request(text, uuid[], text, text) from public;
--! EndIncluded functions/unmask.create_request.sql
--! Included functions/unmask.request.sql
-- unmask.request(field text, tokens uuid[], reason text) -> uuid
--
-- what:    requests the values of tokens of one field. Commit, then reveal.
-- takes:   field: ip or device_id; tokens: of that field, for example array(select masked_ip …), because duplicates and
--          nulls are ignored; reason: for the audit log
-- called:  by unmaskers
-- reads:   masking.keys, masking.vault, unmask.policy
-- writes:  unmask.requests, audit.events
-- twice:   creates another request
-- raises:  ML106 over a limit; ML107 all values have been erased; ML110 no reason, only nulls, or tokens of another
--          field
create or replace function unmask.request(field text, tokens uuid[], reason text)
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  wanted uuid[];
begin
  if field is null or field not in ('ip', 'device_id') then
    raise exception using errcode = 'ML110', message = 'field must be ip or device_id';
  end if;
  wanted := unmask.distinct_tokens(tokens);
  if exists (
    select
      from unnest(wanted) t
     where not exists (
       select
         from masking.keys k
        where k.purpose = 'token'
          and k.field = request.field
          and k.version = get_byte(uuid_send(t), 0)
     )
  ) then
    raise exception using
      errcode = 'ML110',
      message = format('some of these are not tokens of %s', field),
      hint = 'Use masked_ip for ip, and masked_device_id for device_id';
  end if;
  if wanted <> '{}' and not exists (select from masking.current_tokens(wanted)) then
    raise exception using errcode = 'ML107', message = 'all of these values have been erased';
  end if;
  return unmask.create_request(field, wanted, reason, null);
end
$$;

comment on function unmask.request(text, uuid[], text) is 'Requests the values of tokens of one field';
revoke all on function unmask.request(text, uuid[], text) from public;
grant execute on function unmask.request(text, uuid[], text) to logins_unmasker;
--! EndIncluded functions/unmask.request.sql
--! Included functions/unmask.request_user.sql
-- unmask.request_user(user_id text, reason text) -> uuid
--
-- what:    requests all addresses and device ids of a user's logins
-- called:  by unmaskers
-- reads:   public.user_logins, unmask.policy
-- writes:  unmask.requests, audit.events
-- twice:   creates another request
-- raises:  ML106 over a limit, or over 100000 logins; ML110 no reason, or no login of the user has a token
create or replace function unmask.request_user(user_id text, reason text)
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  tokens uuid[];
begin
  -- Limits how much a request reads, in addition to how many values it is for.
  if exists (
    select from public.user_logins l where l.user_id = request_user.user_id offset 100000 limit 1
  ) then
    raise exception using
      errcode = 'ML106',
      message = 'the user has more than 100000 logins, too many for one request',
      hint = 'Request a period: unmask.request(''ip'', array(select distinct masked_ip from user_logins where user_id = … and create_date >= …), …)';
  end if;

  select array_agg(distinct t)
    into tokens
    from public.user_logins l
    cross join unnest(array[l.masked_ip, l.masked_device_id]) t
   where l.user_id = request_user.user_id
     and t is not null;
  return unmask.create_request('user', tokens, reason, user_id);
end
$$;

comment on function unmask.request_user(text, text) is 'Requests all addresses and device ids of a user''s logins';
revoke all on function unmask.request_user(text, text) from public;
grant execute on function unmask.request_user(text, text) to logins_unmasker;
--! EndIncluded functions/unmask.request_user.sql
--! Included functions/unmask.request_quarantined.sql
-- unmask.request_quarantined(message_ids uuid[], reason text) -> uuid
--
-- what:    requests the bodies of quarantined messages
-- called:  by unmaskers
-- reads:   staging.quarantine, unmask.policy
-- writes:  unmask.requests, audit.events
-- twice:   creates another request
-- raises:  ML106 over a limit; ML107 none of them is in quarantine; ML110 no reason, or no ids
create or replace function unmask.request_quarantined(message_ids uuid[], reason text)
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  wanted uuid[] := unmask.distinct_tokens(message_ids);
begin
  if wanted <> '{}' and not exists (select from staging.quarantine q where q.message_id = any (wanted)) then
    raise exception using errcode = 'ML107', message = 'none of these messages is in quarantine';
  end if;
  return unmask.create_request('body', wanted, reason, null);
end
$$;

comment on function unmask.request_quarantined(uuid[], text) is 'Requests the bodies of quarantined messages';
revoke all on function unmask.request_quarantined(uuid[], text) from public;
grant execute on function unmask.request_quarantined(uuid[], text) to logins_unmasker;
--! EndIncluded functions/unmask.request_quarantined.sql
--! Included functions/unmask.request_find.sql
-- unmask.request_find(field text, value text, reason text) -> uuid
--
-- what:    requests a search for a known value. Which tokens it has is information about somebody, so a search needs a
--          request too. The request stores the tokens of the value, not the value.
-- takes:   field: ip or device_id; value: as events contain it
-- called:  by unmaskers
-- reads:   masking.keys, masking.kek, unmask.policy
-- writes:  unmask.requests, audit.events
-- twice:   creates another request
-- raises:  ML001 sealed; ML106 over a limit; ML110 no reason, no value, or another field
create or replace function unmask.request_find(field text, value text, reason text)
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set work_mem = '256MB'
as $$
begin
  if field is null or field not in ('ip', 'device_id') or coalesce(octet_length(value), 0) not between 1 and 256 then
    raise exception using
      errcode = 'ML110',
      message = 'a search needs a field, ip or device_id, and a value of at most 256 bytes';
  end if;
  return unmask.create_request('find', array(select masking.tokens_of_value(field, value)), reason, field);
end
$$;

comment on function unmask.request_find(text, text, text) is 'Requests a search for a known value';
revoke all on function unmask.request_find(text, text, text) from public;
grant execute on function unmask.request_find(text, text, text) to logins_unmasker;
--! EndIncluded functions/unmask.request_find.sql
--! Included functions/unmask.intact_request.sql
-- unmask.intact_request(request_id uuid) -> unmask.requests
--
-- what:    returns a request if it has not been changed since it was made
-- called:  by unmask.approve and unmask.granted
-- reads:   unmask.requests, audit.events, audit.heads
-- raises:  ML101 no such request, or not committed yet; ML108 changed since it was made
create or replace function unmask.intact_request(request_id uuid)
returns unmask.requests
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  request unmask.requests;
begin
  select r.* into request from unmask.requests r where r.request_id = intact_request.request_id;
  if not found then
    raise exception using
      errcode = 'ML101',
      message = 'there is no such request',
      hint = 'Its transaction was rolled back, or is not committed yet';
  end if;
  if not exists (
    select
      from audit.events e
     where e.event_id = request.event_id
       and e.action = 'request'
       and e.details ->> 'digest' = encode(unmask.digest_of(request), 'hex')
       and audit.is_linked(e)
  ) then
    raise exception using
      errcode = 'ML108',
      message = 'the request was changed after it was made: it does not match its event in the audit log',
      hint = 'Inform whoever is responsible for security, and make a new request';
  end if;
  return request;
end
$$;

comment on function unmask.intact_request(uuid) is 'A request that has not been changed since it was made';
revoke all on function unmask.intact_request(uuid) from public;
--! EndIncluded functions/unmask.intact_request.sql
--! Included functions/unmask.approve.sql
-- unmask.approve(request_id uuid) -> void
--
-- what:    approves somebody else's request
-- called:  by approvers
-- reads:   unmask.requests
-- writes:  unmask.approvals, audit.events
-- twice:   raises ML111
-- raises:  ML101 no such request; ML104 expired; ML108 changed since it was made; ML109 the approver's own request, or
--          one of a login that is related to the approver's by role membership; ML111 approved already
create or replace function unmask.approve(request_id uuid)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  request unmask.requests := unmask.intact_request(approve.request_id);
begin
  -- A login that can become the requester, or that the requester can become, is not a second person.
  if request.requested_by = session_user
     or pg_has_role(session_user, request.requested_by, 'member')
     or pg_has_role(request.requested_by, session_user, 'member') then
    raise exception using
      errcode = 'ML109',
      message = 'you cannot approve your own request, nor one of a login that you are a member of or that is a member of yours',
      hint = 'Ask another member of logins_approver';
  end if;
  if request.expires_at <= clock_timestamp() then
    raise exception using errcode = 'ML104', message = 'the request has expired', hint = 'The requester must make it again';
  end if;

  -- A second approval violates the primary key, also a concurrent one, after it has waited for this row.
  insert into unmask.approvals (request_id, digest, event_id)
  values (
    approve.request_id,
    unmask.digest_of(request),
    audit.append(
      'approve',
      jsonb_build_object('request_id', approve.request_id, 'requested_by', request.requested_by)
    )
  );
exception when unique_violation then
  raise exception using errcode = 'ML111', message = 'the request has been approved already';
end
$$;

comment on function unmask.approve(uuid) is 'Approves somebody else''s request';
revoke all on function unmask.approve(uuid) from public;
grant execute on function unmask.approve(uuid) to logins_approver;
--! EndIncluded functions/unmask.approve.sql
--! Included functions/unmask.granted.sql
-- unmask.granted(request_id uuid) -> unmask.requests
--
-- what:    returns a request if session_user may be shown its values now: it is theirs, unchanged, committed and
--          durable, not expired, and approved if that is needed
-- called:  by unmask.reveal and unmask.find
-- reads:   unmask.requests, unmask.approvals, unmask.policy, audit.events, audit.heads
-- raises:  ML101 no such request; ML102 somebody else's; ML103 not committed yet; ML104 expired; ML105 not approved;
--          ML106 over the day's limit; ML108 changed since it was made; 58030 it cannot be made durable
create or replace function unmask.granted(request_id uuid)
returns unmask.requests
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  request unmask.requests := unmask.intact_request(granted.request_id);
  day timestamptz := date_trunc('day', request.requested_at, 'UTC');
  requested bigint;
  allowed integer;
begin
  if request.requested_by <> session_user then
    raise exception using
      errcode = 'ML102',
      message = 'the request belongs to another login',
      hint = 'Make your own: the audit log must show who sees the values';
  end if;
  -- If values were shown in the request's own transaction, a rollback would remove the request.
  if request.xid = pg_current_xact_id() or pg_xact_status(request.xid) = 'in progress' then
    raise exception using
      errcode = 'ML103',
      message = 'the request is not committed yet',
      hint = 'Commit the request, then reveal';
  end if;
  if request.expires_at <= clock_timestamp() then
    raise exception using errcode = 'ML104', message = 'the request has expired', hint = 'Make it again';
  end if;
  if request.needs_approval and not exists (
    select
      from unmask.approvals a
      join audit.events e on e.event_id = a.event_id
     where a.request_id = granted.request_id
       and a.approved_by <> request.requested_by
       and a.digest = unmask.digest_of(request)
       -- An approval counts only if the audit log has it, in the approver's name.
       and e.action = 'approve'
       and e.actor = a.approved_by
       and e.details ->> 'request_id' = a.request_id::text
       and audit.is_linked(e)
  ) then
    raise exception using
      errcode = 'ML105',
      message = 'the request has not been approved',
      hint = format('A member of logins_approver must run select unmask.approve(%L)', request.request_id);
  end if;

  -- Requests that were made at the same time have not seen each other. Here each is committed, and the last one sees
  -- all, so the values shown for a day never exceed the limit. What was shown before may be shown again.
  select coalesce(sum(cardinality(r.tokens)), 0)
    into requested
    from unmask.requests r
   where r.role_name = request.role_name
     and r.requested_at >= day
     and r.requested_at < day + interval '24 hours';
  select p.values_per_day into allowed from unmask.policy p where p.role_name = request.role_name;
  if requested > coalesce(allowed, 0) and not exists (
    select
      from audit.events e
     where e.action in ('reveal', 'find')
       and e.details ->> 'request_id' = request.request_id::text
       and audit.is_linked(e)
  ) then
    raise exception using
      errcode = 'ML106',
      message = format(
        'members of %s have requested %s values on that day (UTC), and the policy allows %s',
        request.role_name, requested, coalesce(allowed, 0)
      ),
      hint = 'Requests were made at the same time, or the policy was changed. Make this one again on another day';
  end if;
  perform audit.make_durable();
  return request;
end
$$;

comment on function unmask.granted(uuid) is 'A request whose values session_user may be shown now';
revoke all on function unmask.granted(uuid) from public;
--! EndIncluded functions/unmask.granted.sql
--! Included functions/unmask.reveal.sql
-- unmask.reveal(request_id uuid) -> setof (token uuid, value text)
--
-- what:    returns the values of a request, by the tokens that were requested. If a rotation has replaced a token
--          since, its value is returned under the new token too, so that a join with user_logins finds it either way.
--          For quarantined messages, token is the message id, and value is the body (as \x and hexadecimal digits if it
--          is not text). Values that have been erased since have no row, and a notice says how many. Adds an event to
--          the audit log, and a line to the server's log that a rollback does not remove: the request's id and the
--          number of values.
-- called:  by unmaskers
-- reads:   unmask.requests, unmask.approvals, audit.events, masking.vault, masking.keys, masking.kek,
--          staging.quarantine
-- writes:  audit.events
-- keeps:   values in memory (work_mem); a temporary file would contain them in the clear
-- twice:   yes, until the request expires; each call is in the audit log
-- raises:  ML001 sealed; ML004 a ciphertext was changed or swapped; ML101 no such request; ML102 somebody else's; ML103
--          not committed yet; ML104 expired; ML105 not approved; ML106 over the day's limit; ML107 all values have been
--          erased; ML108 changed since it was made; ML110 a request to find a value
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
      message = 'this is a request to find a value, not to reveal values',
      hint = format('Run: select * from unmask.find(%L, …)', request.subject);
  elsif request.kind = 'body' then
    return query
      select b.message_id, masking.body_as_text(b.body) from masking.decrypt_bodies(request.tokens) b;
    get diagnostics shown = row_count;
  else
    return query
      with current as materialized (
        select c.asked, c.token from masking.current_tokens(request.tokens) c
      ),
      decrypted as materialized (
        select d.token, d.value from masking.decrypt_values(array(select distinct c.token from current c)) d
      )
      select c.asked, d.value from current c join decrypted d on d.token = c.token
      union
      select d.token, d.value from decrypted d;
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
--! Included functions/unmask.find.sql
-- unmask.find(field text, value text) -> setof uuid
--
-- what:    returns the tokens that logins have for a known value: none if no login has the value, two while the token
--          key is being rotated
-- takes:   field: ip or device_id; value: as events contain it
-- called:  by unmaskers, after unmask.request_find
-- reads:   unmask.requests, unmask.approvals, audit.events, public.user_logins, masking.keys, masking.kek
-- writes:  audit.events
-- twice:   yes, until the request expires; each call is in the audit log
-- raises:  ML001 sealed; ML101 the caller has no request to find this value; ML103 not committed yet; ML105 not
--          approved; ML106 over the day's limit; ML108 changed since it was made
create or replace function unmask.find(field text, value text)
returns setof uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set work_mem = '256MB'
as $$
declare
  -- Events have no longer values.
  wanted uuid[] := array(select masking.tokens_of_value(field, value) where octet_length(value) <= 256);
  found_request_id uuid;
  request unmask.requests;
  found_tokens uuid[];
begin
  select r.request_id
    into found_request_id
    from unmask.requests r
   where r.kind = 'find'
     and r.requested_by = session_user
     and r.expires_at > clock_timestamp()
     and r.subject = find.field
     -- A rotation may have added a token since.
     and r.tokens && wanted
   order by r.requested_at desc
   limit 1;
  if found_request_id is null then
    raise exception using
      errcode = 'ML101',
      message = 'you have no request to find this value, or it has expired',
      hint = 'Make one, and commit it: select unmask.request_find(field, value, reason => …)';
  end if;
  request := unmask.granted(found_request_id);

  found_tokens := array(
    select w.token
      from unnest(wanted) as w (token)
     where case
             when find.field = 'ip' then exists (select from public.user_logins l where l.masked_ip = w.token)
             else exists (select from public.user_logins l where l.masked_device_id = w.token)
           end
     order by w.token
  );
  raise log 'masked-logins: % searched for the value of request %', session_user, request.request_id;
  perform audit.append(
    'find',
    jsonb_build_object('request_id', request.request_id, 'tokens', cardinality(found_tokens))
  );
  return query select unnest(found_tokens);
end
$$;

comment on function unmask.find(text, text) is 'The tokens of a known value, on a committed request';
revoke all on function unmask.find(text, text) from public;
grant execute on function unmask.find(text, text) to logins_unmasker;
--! EndIncluded functions/unmask.find.sql

-- Background work that takes longer than a transaction should: steps, which a worker calls until there is no more.
--! Included types/masking.step.sql
-- What a step of background work (rotation, erasure, purge) reports of itself. The worker logs it and asks for the next
-- step while there is more. If there was nothing to do, or another worker has it, everything but more is null.
do $$
begin
  if to_regtype('masking.step') is null then
    create type masking.step as (
      more boolean,
      began boolean,
      ended text,
      work text,
      rows bigint,
      total bigint,
      seconds double precision
    );
  end if;
end
$$;

comment on type masking.step is 'Report of one step of background work';
comment on column masking.step.more is 'Whether there is more to do';
comment on column masking.step.began is 'Whether this was the first step';
comment on column masking.step.ended is 'done, or paused, if this was the last step';
comment on column masking.step.work is 'What the work is; never a value';
comment on column masking.step.rows is 'Rows processed since the beginning';
comment on column masking.step.total is 'Rows to process in total; null if unknown';
comment on column masking.step.seconds is 'Seconds since the work was requested';
--! EndIncluded types/masking.step.sql
--! Included functions/masking.check_step.sql
-- masking.check_step(max_rows integer) -> void
--
-- what:    refuses a step with an invalid size, or in a transaction that does not see what others have committed
-- called:  by masking.rotate_step, masking.erase_step and masking.purge_step, first of all
-- raises:  22023 max_rows is null or not from 1 to 100000; 25000 not READ COMMITTED
create or replace function masking.check_step(max_rows integer)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if (max_rows between 1 and 100000) is not true then
    raise exception using errcode = '22023', message = 'max_rows must be from 1 to 100000';
  end if;
  perform masking.require_read_committed();
end
$$;

comment on function masking.check_step(integer) is 'Refuses a step that cannot be performed';
revoke all on function masking.check_step(integer) from public;
--! EndIncluded functions/masking.check_step.sql

-- Rotating keys: new keys, and everything brought under them in steps. Then old keys can be destroyed.
--! Included tables/masking.rotations.sql
-- Rotations of keys, and the progress of each. Each step processes some rows and commits, so after a crash a rotation
-- resumes where it stopped.
create table if not exists masking.rotations (
  rotation_id bigint primary key generated always as identity,
  purpose text not null check (purpose in ('token', 'cipher')),
  field text not null check (field in ('ip', 'device_id', 'body')),
  from_version integer not null,
  to_version integer not null,
  state text not null default 'running' check (state in ('running', 'paused', 'done')),
  phase text not null check (phase in ('vault', 'logins', 'quarantine')),
  position_token uuid,
  position_user_id text,
  position_create_date timestamptz,
  position_message_id uuid,
  rows_done bigint not null default 0,
  rows_total bigint,
  worked interval not null default '0',
  last_step_at timestamptz,
  problem text,
  started_at timestamptz not null default now(),
  started_by name not null default session_user,
  finished_at timestamptz
);

create unique index if not exists rotations_one_at_a_time on masking.rotations (purpose, field) where state <> 'done';

comment on table masking.rotations is 'Rotations of keys and their progress';
comment on column masking.rotations.phase is 'Token key: vault, then logins; cipher key: vault or quarantine';
comment on column masking.rotations.position_token is 'Last token, or last message id in quarantine, processed in this phase';
comment on column masking.rotations.rows_done is 'Rows processed so far, in all phases, including logins that arrive meanwhile';
comment on column masking.rotations.rows_total is 'Rows to process when the first step began; null before';
comment on column masking.rotations.worked is 'Time spent on it, including the pauses between steps';
comment on column masking.rotations.problem is 'Why the rotation paused itself; never a value';
--! EndIncluded tables/masking.rotations.sql
--! Included functions/masking.first_token.sql
-- masking.first_token(key_version integer) -> uuid
--
-- what:    returns the lower bound of the tokens of a token key: its version, then zeros. Above the last version it is
--          the greatest UUID, which is not a token.
-- called:  by masking.is_token_of
create or replace function masking.first_token(key_version integer)
returns uuid
language sql
immutable
parallel safe
as $$
  select case
    when key_version > 255 then 'ffffffff-ffff-ffff-ffff-ffffffffffff'
    else lpad(to_hex(key_version), 2, '0') || '000000-0000-0000-0000-000000000000'
  end::uuid
$$;

comment on function masking.first_token(integer) is 'Lower bound of the tokens of a key';
revoke all on function masking.first_token(integer) from public;
--! EndIncluded functions/masking.first_token.sql
--! Included functions/masking.is_token_of.sql
-- masking.is_token_of(token uuid, key_version integer) -> boolean
--
-- what:    whether a token was made with this version of a token key. The planner inlines this function and reads the
--          tokens of one version as a range of an index.
-- called:  by masking.count_under_key, masking.destroy_key, masking.has_stale_tokens, masking.retoken_logins and
--          masking.retoken_vault
create or replace function masking.is_token_of(token uuid, key_version integer)
returns boolean
language sql
immutable
parallel safe
as $$
  select token >= masking.first_token(key_version) and token < masking.first_token(key_version + 1)
$$;

comment on function masking.is_token_of(uuid, integer) is 'Whether a token was made with this version of a token key';
revoke all on function masking.is_token_of(uuid, integer) from public;
--! EndIncluded functions/masking.is_token_of.sql
--! Included functions/masking.has_stale_tokens.sql
-- masking.has_stale_tokens(key_version integer) -> boolean
--
-- what:    whether any login has a token of this token key whose value is in the vault under another token by now. If
--          the row of masking.retokened were deleted, such a login would lose its value.
-- called:  by masking.retoken_logins and masking.destroy_key
-- reads:   public.user_logins, masking.retokened
--
-- Usually there is no such token, and the tokens of a key are adjacent in the indexes. The settings make the planner
-- probe the indexes, whatever outdated statistics say.
create or replace function masking.has_stale_tokens(key_version integer)
returns boolean
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
begin
  return exists (
    select
      from public.user_logins l
     where masking.is_token_of(l.masked_ip, key_version)
       and exists (select from masking.retokened r where r.old_token = l.masked_ip offset 0)
  ) or exists (
    select
      from public.user_logins l
     where masking.is_token_of(l.masked_device_id, key_version)
       and exists (select from masking.retokened r where r.old_token = l.masked_device_id offset 0)
  );
end
$$;

comment on function masking.has_stale_tokens(integer) is 'Whether logins still have tokens of a token key whose values have moved';
revoke all on function masking.has_stale_tokens(integer) from public;
--! EndIncluded functions/masking.has_stale_tokens.sql
--! Included functions/masking.count_under_key.sql
-- masking.count_under_key(purpose text, field text, version integer) -> bigint
--
-- what:    counts what is under a data key: vault entries, or quarantined messages if field is body
-- called:  by masking.rotate_step and masking.destroy_key
-- reads:   masking.vault, staging.quarantine
create or replace function masking.count_under_key(purpose text, field text, version integer)
returns bigint
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return case
    when field = 'body' then
      (select count(*) from staging.quarantine q where q.key_version = version)
    when purpose = 'cipher' then
      (select count(*) from masking.vault v where v.key_version = version)
    else
      (select count(*) from masking.vault v where masking.is_token_of(v.token, version))
  end;
end
$$;

comment on function masking.count_under_key(text, text, integer) is 'How many values or bodies are under a data key';
revoke all on function masking.count_under_key(text, text, integer) from public;
--! EndIncluded functions/masking.count_under_key.sql
--! Included functions/masking.rotate.sql
-- masking.rotate(purpose text default null, field text default null) -> setof bigint
--
-- what:    creates new keys, which are active at once, and starts the rotations that bring existing data under them.
--          Workers do this in the background, in small steps, while loading, finding and revealing continue. Returns
--          the ids of the rotations. Waits for the batches that are being masked.
-- takes:   purpose: token or cipher, null for both; field: ip, device_id or body (which has only a cipher key), null
--          for all
-- called:  by custodians
-- writes:  masking.keys, masking.rotations, graphile_worker's jobs, audit.events
-- twice:   raises ML008 until the rotation is done
-- raises:  ML001 sealed; ML005 no version is left for a token key; ML007 no such key; ML008 a rotation of it is not
--          done yet
create or replace function masking.rotate(purpose text default null, field text default null)
returns setof bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set work_mem = '256MB'
as $$
declare
  key masking.keys;
  new_version integer;
  new_rotation_id bigint;
  started integer := 0;
begin
  -- Batches lock this table in a weaker mode. So this waits for those under way, and later ones see the new key.
  lock table masking.keys in share row exclusive mode;
  for key in
    select k.*
      from masking.keys k
     where k.state = 'active'
       and k.purpose = coalesce(rotate.purpose, k.purpose)
       and k.field = coalesce(rotate.field, k.field)
     order by k.purpose, k.version
  loop
    if exists (
      select
        from masking.rotations r
       where r.purpose = key.purpose and r.field = key.field and r.state <> 'done'
    ) then
      raise exception using
        errcode = 'ML008',
        message = format('the rotation of the %s key of %s is not done yet', key.purpose, key.field),
        hint = 'The command "status" shows its progress; resume a paused rotation with select masking.resume_rotation()';
    end if;
    new_version := masking.create_key(key.purpose, key.field);
    insert into masking.rotations (purpose, field, from_version, to_version, phase)
    values (
      key.purpose, key.field, key.version, new_version,
      case when key.field = 'body' then 'quarantine' else 'vault' end
    )
    returning rotation_id into new_rotation_id;
    perform audit.append(
      'rotate',
      jsonb_build_object('purpose', key.purpose, 'field', key.field, 'from', key.version, 'to', new_version)
    );
    started := started + 1;
    return next new_rotation_id;
  end loop;
  if started = 0 then
    raise exception using errcode = 'ML007', message = 'there is no active key of this purpose and field';
  end if;
  perform graphile_worker.add_job('rotate_keys', job_key => 'rotate_keys', priority => 10);
end
$$;

comment on function masking.rotate(text, text) is 'Creates new keys and starts bringing existing data under them';
revoke all on function masking.rotate(text, text) from public;
grant execute on function masking.rotate(text, text) to logins_custodian;
--! EndIncluded functions/masking.rotate.sql
--! Included functions/masking.retoken_vault.sql
-- masking.retoken_vault(rotation masking.rotations, max_rows integer) -> masking.rotations
--
-- what:    moves some vault entries to their token under the new key, and stores which token became which in
--          masking.retokened. The tokens of a key are adjacent in the index, so what is left is easily found.
-- called:  by masking.rotate_step
-- reads:   masking.keys, masking.kek
-- writes:  masking.vault, masking.retokened
-- twice:   yes: continues with what is still under the old key
-- raises:  ML001, ML002, ML004
create or replace function masking.retoken_vault(rotation masking.rotations, max_rows integer)
returns masking.rotations
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set work_mem = '256MB'
as $$
declare
  new_key bytea := masking.data_key('token', rotation.to_version);
  chunk uuid[];
begin
  chunk := array(
    select v.token
      from masking.vault v
     where masking.is_token_of(v.token, rotation.from_version)
     order by v.token
     limit max_rows
       -- Wait for a step of the cipher key's rotation that is at these entries.
       for update
  );

  with moves as materialized (
    select d.token as old_token, masking.token_of(d.digest, rotation.to_version) as new_token
    from (
      select o.token, crypto.hmac(convert_to(o.value, 'UTF8'), new_key, 'sha256') as digest
      from masking.decrypt_values(chunk) o
      offset 0
    ) d
  ),
  moved as (
    insert into masking.vault (token, key_version, ciphertext)
    select m.new_token, v.key_version, v.ciphertext
    from moves m
    join masking.vault v on v.token = m.old_token
    order by m.new_token
    -- The value may have arrived again since the new key became active.
    on conflict do nothing
  ),
  followed as (
    -- Tokens of earlier keys must point to the new token too.
    update masking.retokened r
       set new_token = m.new_token
      from moves m
     where r.new_token = m.old_token
  )
  insert into masking.retokened (old_token, new_token)
  select m.old_token, m.new_token from moves m;

  delete from masking.vault v where v.token = any (chunk);

  rotation.rows_done := rotation.rows_done + cardinality(chunk);
  if cardinality(chunk) < max_rows and not exists (
    select
      from masking.vault v
     where masking.is_token_of(v.token, rotation.from_version)
  ) then
    rotation.phase := 'logins';
  end if;
  return rotation;
end
$$;

comment on function masking.retoken_vault(masking.rotations, integer) is 'Moves some vault entries to their token under a new key';
revoke all on function masking.retoken_vault(masking.rotations, integer) from public;
--! EndIncluded functions/masking.retoken_vault.sql
--! Included functions/masking.retoken_logins.sql
-- masking.retoken_logins(rotation masking.rotations, max_rows integer) -> masking.rotations
--
-- what:    replaces the old tokens in the next logins, in the order of the primary key. New batches have only new
--          tokens (masking.rotate waits for earlier ones), so one pass is usually enough. After a pass, the rotation is
--          done if nothing is left under the old key in the vault or in the logins.
-- called:  by masking.rotate_step
-- reads:   masking.retokened, masking.vault
-- writes:  public.user_logins
-- twice:   yes: continues at the rotation's position
create or replace function masking.retoken_logins(rotation masking.rotations, max_rows integer)
returns masking.rotations
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  last_login record;
  start_user text := coalesce(rotation.position_user_id, '');
  start_date timestamptz := coalesce(rotation.position_create_date, '-infinity');
  start_message uuid := coalesce(rotation.position_message_id, '00000000-0000-0000-0000-000000000000');
begin
  select c.user_id, c.create_date, c.message_id, count(*) over () as looked_at
    into last_login
    from (
      select l.user_id, l.create_date, l.message_id
        from public.user_logins l
       where (l.user_id, l.create_date, l.message_id) > (start_user, start_date, start_message)
       order by l.user_id, l.create_date, l.message_id
       limit max_rows
    ) c
   order by c.user_id desc, c.create_date desc, c.message_id desc
   limit 1;
  if not found then
    rotation.position_user_id := null;
    rotation.position_create_date := null;
    rotation.position_message_id := null;
    -- A login with an old token may have been added meanwhile, for example by a restore. Then start again.
    if exists (
      select
        from masking.vault v
       where masking.is_token_of(v.token, rotation.from_version)
    ) then
      rotation.phase := 'vault';
    elsif not masking.has_stale_tokens(rotation.from_version) then
      rotation.state := 'done';
    end if;
    return rotation;
  end if;

  update public.user_logins l
     set masked_ip = case rotation.field when 'ip' then r.new_token else l.masked_ip end,
         masked_device_id = case rotation.field when 'ip' then l.masked_device_id else r.new_token end
    from masking.retokened r
   where r.old_token = case rotation.field when 'ip' then l.masked_ip else l.masked_device_id end
     and (l.user_id, l.create_date, l.message_id) > (start_user, start_date, start_message)
     and (l.user_id, l.create_date, l.message_id) <= (last_login.user_id, last_login.create_date, last_login.message_id);

  rotation.position_user_id := last_login.user_id;
  rotation.position_create_date := last_login.create_date;
  rotation.position_message_id := last_login.message_id;
  rotation.rows_done := rotation.rows_done + last_login.looked_at;
  return rotation;
end
$$;

comment on function masking.retoken_logins(masking.rotations, integer) is 'Replaces the old tokens in the next logins';
revoke all on function masking.retoken_logins(masking.rotations, integer) from public;
--! EndIncluded functions/masking.retoken_logins.sql
--! Included functions/masking.reencrypt_vault.sql
-- masking.reencrypt_vault(rotation masking.rotations, max_rows integer) -> masking.rotations
--
-- what:    encrypts the next vault entries of a field under the new cipher key
-- called:  by masking.rotate_step
-- reads:   masking.keys, masking.kek
-- writes:  masking.vault
-- twice:   yes: continues at the rotation's position
-- raises:  ML001, ML002, ML004
create or replace function masking.reencrypt_vault(rotation masking.rotations, max_rows integer)
returns masking.rotations
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set work_mem = '256MB'
as $$
declare
  new_password text := encode(masking.data_key('cipher', rotation.to_version), 'hex');
  start_token uuid := coalesce(rotation.position_token, '00000000-0000-0000-0000-000000000000');
  chunk uuid[];
begin
  chunk := array(
    select v.token
      from masking.vault v
     where v.token > start_token
       and v.key_version = rotation.from_version
     order by v.token
     limit max_rows
       -- Wait for a step of the token key's rotation that is at these entries.
       for update
  );

  update masking.vault v
     set key_version = rotation.to_version,
         ciphertext = crypto.pgp_sym_encrypt_bytea(masking.padded(o.value), new_password, masking.cipher_options())
    from masking.decrypt_values(chunk) o
   where v.token = o.token
     and v.key_version = rotation.from_version;

  rotation.rows_done := rotation.rows_done + cardinality(chunk);
  rotation.position_token := chunk[cardinality(chunk)];
  if cardinality(chunk) < max_rows then
    -- A rotation of the token key may have moved entries to before this position. Then start again.
    rotation.position_token := null;
    if not exists (select from masking.vault v where v.key_version = rotation.from_version) then
      rotation.state := 'done';
    end if;
  end if;
  return rotation;
end
$$;

comment on function masking.reencrypt_vault(masking.rotations, integer) is 'Encrypts the next vault entries under a new key';
revoke all on function masking.reencrypt_vault(masking.rotations, integer) from public;
--! EndIncluded functions/masking.reencrypt_vault.sql
--! Included functions/masking.reencrypt_bodies.sql
-- masking.reencrypt_bodies(rotation masking.rotations, max_rows integer) -> masking.rotations
--
-- what:    encrypts some quarantined bodies under the new cipher key
-- called:  by masking.rotate_step
-- reads:   masking.keys, masking.kek
-- writes:  staging.quarantine
-- twice:   yes: continues with what is still under the old key
-- raises:  ML001, ML002, ML004
create or replace function masking.reencrypt_bodies(rotation masking.rotations, max_rows integer)
returns masking.rotations
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set work_mem = '256MB'
as $$
declare
  new_password text := encode(masking.data_key('cipher', rotation.to_version), 'hex');
  chunk uuid[];
begin
  chunk := array(
    select q.message_id
      from staging.quarantine q
     where q.key_version = rotation.from_version
     -- A body can have a megabyte, a vault entry a few hundred bytes. A hundred bodies fit into work_mem.
     limit least(greatest(max_rows / 10, 1), 100)
  );

  update staging.quarantine q
     set key_version = rotation.to_version,
         body = crypto.pgp_sym_encrypt_bytea(b.body, new_password, masking.cipher_options())
    from masking.decrypt_bodies(chunk) b
   where q.message_id = b.message_id;

  rotation.rows_done := rotation.rows_done + cardinality(chunk);
  if cardinality(chunk) = 0 then
    rotation.state := 'done';
  end if;
  return rotation;
end
$$;

comment on function masking.reencrypt_bodies(masking.rotations, integer) is 'Encrypts some quarantined bodies under a new key';
revoke all on function masking.reencrypt_bodies(masking.rotations, integer) from public;
--! EndIncluded functions/masking.reencrypt_bodies.sql
--! Included functions/masking.rotate_step.sql
-- masking.rotate_step(max_rows integer default 500) -> masking.step
--
-- what:    performs one step of the oldest running rotation. If a vault entry cannot be decrypted, it pauses the
--          rotation and stores why: a rotation must not turn an exchanged ciphertext into a valid one.
-- called:  by the worker's task rotate_keys, a transaction a step
-- reads:   masking.keys, masking.kek
-- writes:  masking.rotations, the data that is rotated; audit.events at the end
-- keeps:   values and bodies in memory (work_mem), off the disk
-- twice:   yes: each call is the next step
-- raises:  ML001 sealed; ML002 wrong key-encryption key; 22023 max_rows is not from 1 to 100000; 25000 not READ
--          COMMITTED; 55P03 a lock was not available within two seconds
create or replace function masking.rotate_step(max_rows integer default 500)
returns masking.step
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
set plan_cache_mode = force_generic_plan
set work_mem = '256MB'
as $$
declare
  step masking.step;
  rotation masking.rotations;
  step_began_at timestamptz;
begin
  perform masking.check_step(max_rows);
  -- Skip a rotation that another worker is working on.
  select r.* into rotation
    from masking.rotations r
   where r.state = 'running'
   order by r.rotation_id
   limit 1
     for update skip locked;
  if not found then
    step.more := false;
    return step;
  end if;
  step.began := rotation.rows_total is null;
  if step.began then
    rotation.rows_total := masking.count_under_key(rotation.purpose, rotation.field, rotation.from_version);
    if rotation.purpose = 'token' then
      rotation.rows_total := rotation.rows_total + (select count(*) from public.user_logins);
    end if;
  end if;
  step_began_at := clock_timestamp();
  -- Wait for transactions that delete values, so that this step does not write back a value that they delete.
  lock table masking.vault in row exclusive mode;

  begin
    case
      when rotation.phase = 'quarantine' then
        rotation := masking.reencrypt_bodies(rotation, max_rows);
      when rotation.phase = 'logins' then
        rotation := masking.retoken_logins(rotation, max_rows);
      when rotation.purpose = 'token' then
        rotation := masking.retoken_vault(rotation, max_rows);
      else
        rotation := masking.reencrypt_vault(rotation, max_rows);
    end case;
  exception when sqlstate 'ML004' then
    rotation.state := 'paused';
    rotation.problem := sqlerrm;
  end;

  update masking.rotations r
     set state = rotation.state,
         phase = rotation.phase,
         position_token = rotation.position_token,
         position_user_id = rotation.position_user_id,
         position_create_date = rotation.position_create_date,
         position_message_id = rotation.position_message_id,
         rows_done = rotation.rows_done,
         rows_total = rotation.rows_total,
         -- The pause after a step counts as work; hours in which no worker ran do not.
         worked = r.worked + least(clock_timestamp() - coalesce(r.last_step_at, step_began_at), interval '2 minutes'),
         last_step_at = clock_timestamp(),
         problem = rotation.problem,
         finished_at = case when rotation.state = 'done' then clock_timestamp() end
   where r.rotation_id = rotation.rotation_id;
  if rotation.state <> 'running' then
    perform audit.append(
      case rotation.state when 'done' then 'rotated' else 'rotation paused' end,
      jsonb_build_object(
        'purpose', rotation.purpose, 'field', rotation.field,
        'from', rotation.from_version, 'to', rotation.to_version, 'rows', rotation.rows_done
      )
    );
    step.ended := rotation.state;
  end if;
  step.more := exists (select from masking.rotations r where r.state = 'running');
  step.work := format(
    'rotation of the %s key of %s, %s to %s',
    rotation.purpose, rotation.field, rotation.from_version, rotation.to_version
  );
  step.rows := rotation.rows_done;
  step.total := rotation.rows_total;
  step.seconds := extract(epoch from clock_timestamp() - rotation.started_at);
  return step;
end
$$;

comment on function masking.rotate_step(integer) is 'Performs one step of the oldest running rotation';
revoke all on function masking.rotate_step(integer) from public;
grant execute on function masking.rotate_step(integer) to logins_worker;
--! EndIncluded functions/masking.rotate_step.sql
--! Included functions/masking.pause_rotation.sql
-- masking.pause_rotation() -> integer
--
-- what:    pauses all running rotations, after the step under way; returns how many
-- called:  by custodians
-- writes:  masking.rotations, audit.events
-- twice:   yes
create or replace function masking.pause_rotation()
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  paused integer;
begin
  update masking.rotations set state = 'paused' where state = 'running';
  get diagnostics paused = row_count;
  perform audit.append('pause rotation', jsonb_build_object('rotations', paused));
  return paused;
end
$$;

comment on function masking.pause_rotation() is 'Pauses all running rotations';
revoke all on function masking.pause_rotation() from public;
grant execute on function masking.pause_rotation() to logins_custodian;
--! EndIncluded functions/masking.pause_rotation.sql
--! Included functions/masking.resume_rotation.sql
-- masking.resume_rotation() -> integer
--
-- what:    resumes all paused rotations; returns how many
-- called:  by custodians
-- writes:  masking.rotations, graphile_worker's jobs, audit.events
-- twice:   yes
create or replace function masking.resume_rotation()
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  resumed integer;
begin
  update masking.rotations set state = 'running', problem = null where state = 'paused';
  get diagnostics resumed = row_count;
  perform audit.append('resume rotation', jsonb_build_object('rotations', resumed));
  perform graphile_worker.add_job('rotate_keys', job_key => 'rotate_keys', priority => 10);
  return resumed;
end
$$;

comment on function masking.resume_rotation() is 'Resumes all paused rotations';
revoke all on function masking.resume_rotation() from public;
grant execute on function masking.resume_rotation() to logins_custodian;
--! EndIncluded functions/masking.resume_rotation.sql
--! Included functions/masking.destroy_key.sql
-- masking.destroy_key(purpose text, version integer, losing bigint default 0) -> void
--
-- what:    destroys a retiring key: deletes the key and the values that are still encrypted under it, which nobody can
--          decrypt any more. Backups and WAL contain the key only encrypted under the key-encryption key.
-- takes:   losing: how many values (or quarantined messages) are lost. After a rotation there are none, which is the
--          default. To lose values on purpose, pass their exact number, which is in the error's message. Values that
--          have moved to another key are not lost this way: while logins have their old tokens, the call is refused.
-- called:  by custodians
-- reads:   masking.vault, public.user_logins, staging.quarantine
-- writes:  masking.keys, masking.vault, staging.quarantine, masking.retokened (the tokens of a token key),
--          masking.rotations, audit.events
-- twice:   raises ML007
-- raises:  ML006 another number of values is under the key; ML007 there is no such retiring key; ML008 its rotation is
--          not done yet, or logins still have its tokens; 22023 losing is null or below 0; 25000 not READ COMMITTED
create or replace function masking.destroy_key(purpose text, version integer, losing bigint default 0)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  key masking.keys;
  held bigint;
  lost bigint;
begin
  if (losing >= 0) is not true then
    raise exception using errcode = '22023', message = 'losing must be the number of values that are lost, 0 or more';
  end if;
  perform masking.require_read_committed();
  -- Wait for a step of its rotation. Steps lock the rotation first, then the vault.
  perform
     from masking.rotations r
    where r.purpose = destroy_key.purpose and r.from_version = destroy_key.version
      for update;
  -- Wait for batches. Later ones wait until this transaction ends.
  lock table masking.keys, masking.vault in share row exclusive mode;
  select k.* into key
    from masking.keys k
   where k.purpose = destroy_key.purpose and k.version = destroy_key.version;
  if key.state is distinct from 'retiring' then
    raise exception using
      errcode = 'ML007',
      message = 'there is no retiring key of this purpose and version',
      hint = 'Rotate an active key first: select masking.rotate(…)';
  end if;

  held := masking.count_under_key(key.purpose, key.field, key.version);
  if held <> losing then
    raise exception using
      errcode = 'ML006',
      message = format('%s values are under this key, but losing is %s', held, losing),
      hint = case
        when held = 0 then 'Omit losing: no value is lost'
        else format('Wait until its rotation is done; to lose the values forever, pass losing => %s', held)
      end;
  end if;
  -- If nothing is left under the key, its rotation may still be at the logins, and needs the old tokens. In any case,
  -- logins whose values have moved to another key need them.
  if losing = 0 and exists (
    select
      from masking.rotations r
     where r.purpose = key.purpose and r.from_version = key.version and r.state <> 'done'
  ) then
    raise exception using
      errcode = 'ML008',
      message = 'the rotation of this key is not done yet',
      hint = 'The command "status" shows its progress';
  elsif key.purpose = 'token' and masking.has_stale_tokens(key.version) then
    raise exception using
      errcode = 'ML008',
      message = 'logins still have tokens of this key whose values are under another key: they would lose these values',
      hint = 'Wait until its rotation is done; if none is running, rotate the token key of this field once more';
  end if;

  -- Delete what nobody can decrypt any more, so that the same value is new when it arrives again.
  if key.purpose = 'token' then
    delete from masking.retokened r
     where masking.is_token_of(r.old_token, key.version) or masking.is_token_of(r.new_token, key.version);
    delete from masking.vault v where masking.is_token_of(v.token, key.version);
  elsif key.field = 'body' then
    delete from staging.quarantine q where q.key_version = key.version;
  else
    delete from masking.retokened r
     using masking.vault v
     where v.key_version = key.version and r.new_token = v.token;
    delete from masking.vault v where v.key_version = key.version;
  end if;
  get diagnostics lost = row_count;

  update masking.keys k
     set state = 'destroyed', wrapped = null, destroyed_at = now()
   where k.purpose = key.purpose and k.version = key.version;
  update masking.rotations r
     set state = 'done', finished_at = now()
   where r.purpose = key.purpose and r.from_version = key.version and r.state <> 'done';
  perform audit.append(
    'destroy key',
    jsonb_build_object('purpose', key.purpose, 'field', key.field, 'version', key.version, 'lost', lost)
  );
end
$$;

comment on function masking.destroy_key(text, integer, bigint) is 'Destroys a retiring key';
revoke all on function masking.destroy_key(text, integer, bigint) from public;
grant execute on function masking.destroy_key(text, integer, bigint) to logins_custodian;
--! EndIncluded functions/masking.destroy_key.sql

-- Removing data: erasing a user, dropping old logins, and deleting the values that no login has any more.
--! Included functions/masking.delete_unreferenced.sql
-- masking.delete_unreferenced(tokens uuid[]) -> bigint
--
-- what:    deletes the vault entries whose tokens no login has any more, neither the current token nor one that a
--          rotation has replaced. Returns how many.
-- called:  by masking.erase_step and masking.purge_step
-- reads:   public.user_logins
-- writes:  masking.vault, masking.retokened
-- locks:   masking.vault. A batch that relies on an entry either commits before this, or starts after it and does not
--          find the entry (masking.mask_staged).
-- twice:   yes
create or replace function masking.delete_unreferenced(tokens uuid[])
returns bigint
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  gone uuid[];
begin
  lock table masking.vault in share row exclusive mode;

  with candidates as (
    select distinct c.token from masking.current_tokens(tokens) c
  ),
  names as (
    select c.token, c.token as alias from candidates c
    union all
    select r.new_token, r.old_token from candidates c join masking.retokened r on r.new_token = c.token
  ),
  referenced as (
    select n.token
    from names n
    where exists (select from public.user_logins l where l.masked_ip = n.alias)
       or exists (select from public.user_logins l where l.masked_device_id = n.alias)
  )
  select coalesce(array_agg(c.token), '{}')
    into gone
    from candidates c
   where not exists (select from referenced r where r.token = c.token);

  delete from masking.vault v where v.token = any (gone);
  delete from masking.retokened r where r.new_token = any (gone);
  return cardinality(gone);
end
$$;

comment on function masking.delete_unreferenced(uuid[]) is 'Deletes vault entries that no login needs';
revoke all on function masking.delete_unreferenced(uuid[]) from public;
--! EndIncluded functions/masking.delete_unreferenced.sql
--! Included tables/masking.erasures.sql
-- Erasures of users, and the progress of each. The logins are kept, without tokens.
create table if not exists masking.erasures (
  erasure_id bigint primary key generated always as identity,
  user_id text not null,
  reason text not null,
  requested_at timestamptz not null default clock_timestamp(),
  requested_by name not null default session_user,
  phase text not null default 'logins' check (phase in ('logins', 'quarantine', 'done')),
  position_message_id uuid,
  logins_cleared bigint not null default 0,
  values_erased bigint not null default 0,
  bodies_erased bigint not null default 0,
  started_at timestamptz,
  finished_at timestamptz
);

comment on table masking.erasures is 'Erasures of users and their progress';
comment on column masking.erasures.started_at is 'When the first step began';
comment on column masking.erasures.logins_cleared is 'Logins whose tokens were set to null';
comment on column masking.erasures.values_erased is 'Vault entries deleted, because no other login needed them';
comment on column masking.erasures.bodies_erased is 'Quarantined messages of the user deleted';
--! EndIncluded tables/masking.erasures.sql
--! Included functions/masking.user_of_body.sql
-- masking.user_of_body(message_id uuid) -> text
--
-- what:    returns the user_id in the body of a quarantined message, also inside envelopes (up to three, nested) and
--          base64. Returns null if there is none, or if the body was changed and cannot be decrypted: one such body
--          must not stop erasures. Compressed bodies cannot be searched.
-- called:  by masking.erase_step
-- reads:   staging.quarantine, masking.keys, masking.kek
-- raises:  ML001 sealed; ML002 wrong key-encryption key
create or replace function masking.user_of_body(message_id uuid)
returns text
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
  body bytea;
  event jsonb;
begin
  select b.body into body from masking.decrypt_bodies(array[user_of_body.message_id]) b;
  event := coalesce(masking.read_body(body), masking.read_body(masking.from_base64(body)));
  for depth in 1..3 loop
    exit when event ? 'user_id';
    event := masking.event_inside(event);
  end loop;
  return event ->> 'user_id';
exception when sqlstate 'ML004' then
  return null;
end
$$;

comment on function masking.user_of_body(uuid) is 'The user_id in the body of a quarantined message';
revoke all on function masking.user_of_body(uuid) from public;
--! EndIncluded functions/masking.user_of_body.sql
--! Included functions/masking.erase_user.sql
-- masking.erase_user(user_id text, reason text) -> bigint
--
-- what:    starts the erasure of a user and returns its id. Workers then set the tokens of the user's logins to null,
--          delete the vault entries that no other login needs, and delete the user's quarantined messages, in small
--          steps. the command status and masking.erasures show the progress. Logins that arrive later are masked as
--          usual. Backups keep the values until they are deleted.
-- called:  by custodians
-- writes:  masking.erasures, graphile_worker's jobs, audit.events
-- twice:   yes: starts another erasure, of what has arrived since
-- raises:  ML110 no user or no reason
create or replace function masking.erase_user(user_id text, reason text)
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  new_erasure_id bigint;
begin
  if coalesce(user_id, '') = '' or coalesce(btrim(reason), '') = '' then
    raise exception using errcode = 'ML110', message = 'an erasure needs a user and a reason';
  end if;
  insert into masking.erasures (user_id, reason)
  values (erase_user.user_id, btrim(erase_user.reason))
  returning erasure_id into new_erasure_id;
  perform audit.append(
    'erase user',
    jsonb_build_object('erasure_id', new_erasure_id, 'user_id', user_id, 'reason', btrim(reason))
  );
  perform graphile_worker.add_job('erase_users', job_key => 'erase_users', priority => 10);
  return new_erasure_id;
end
$$;

comment on function masking.erase_user(text, text) is 'Starts the erasure of a user';
revoke all on function masking.erase_user(text, text) from public;
grant execute on function masking.erase_user(text, text) to logins_custodian;
--! EndIncluded functions/masking.erase_user.sql
--! Included functions/masking.erase_step.sql
-- masking.erase_step(max_rows integer default 500) -> masking.step
--
-- what:    performs one step of the oldest erasure. The erasure is done when no login that was loaded before the
--          request has a token, and all quarantined messages of that time have been checked.
-- returns: rows: logins cleared and bodies deleted; total: null
-- called:  by the worker's task erase_users, a transaction a step
-- reads:   masking.keys and masking.kek (to decrypt quarantined bodies)
-- writes:  public.user_logins, masking.vault, staging.quarantine, masking.erasures; audit.events at the end
-- twice:   yes: each call is the next step
-- raises:  ML001 sealed; ML002 wrong key-encryption key; 22023 max_rows is not from 1 to 100000; 25000 not READ
--          COMMITTED; 55P03 a lock was not available within two seconds
create or replace function masking.erase_step(max_rows integer default 500)
returns masking.step
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
set plan_cache_mode = force_generic_plan
set work_mem = '256MB'
as $$
declare
  step masking.step;
  erasure masking.erasures;
  tokens uuid[];
  cleared integer;
  chunk uuid[];
  erased integer;
begin
  perform masking.check_step(max_rows);
  select e.* into erasure
    from masking.erasures e
   where e.phase <> 'done'
   order by e.erasure_id
   limit 1
     for update skip locked;
  if not found then
    step.more := false;
    return step;
  end if;
  step.began := erasure.started_at is null;
  erasure.started_at := coalesce(erasure.started_at, clock_timestamp());

  if erasure.phase = 'logins' then
    -- Wait for batches that began before the erasure, to see their logins.
    lock table masking.vault in share row exclusive mode;
    with chunk as (
      select l.user_id, l.create_date, l.message_id, l.masked_ip, l.masked_device_id
      from public.user_logins l
      where l.user_id = erasure.user_id
        and l.loaded_at <= erasure.requested_at
        and (l.masked_ip is not null or l.masked_device_id is not null)
      limit max_rows
      for update
    ),
    nulled as (
      update public.user_logins l
         set masked_ip = null, masked_device_id = null
        from chunk c
       where l.user_id = c.user_id and l.create_date = c.create_date and l.message_id = c.message_id
    )
    select array_agg(distinct t) filter (where t is not null), count(distinct c.message_id)
      into tokens, cleared
      from chunk c
      cross join unnest(array[c.masked_ip, c.masked_device_id]) t;

    if cleared = 0 then
      erasure.phase := 'quarantine';
    else
      erasure.logins_cleared := erasure.logins_cleared + cleared;
      erasure.values_erased := erasure.values_erased + masking.delete_unreferenced(tokens);
    end if;

  else
    -- The owner of a quarantined message is named only in its body.
    chunk := array(
      select q.message_id
        from staging.quarantine q
       where q.message_id > coalesce(erasure.position_message_id, '00000000-0000-0000-0000-000000000000')
         and q.quarantined_at <= erasure.requested_at
       order by q.message_id
       limit greatest(max_rows / 10, 1)
    );
    delete from staging.quarantine q
     where q.message_id = any (chunk)
       and masking.user_of_body(q.message_id) = erasure.user_id;
    get diagnostics erased = row_count;
    erasure.bodies_erased := erasure.bodies_erased + erased;
    erasure.position_message_id := chunk[cardinality(chunk)];
    if cardinality(chunk) = 0 then
      -- A login may have been added meanwhile, for example by a restore.
      erasure.phase := case
        when exists (
          select
            from public.user_logins l
           where l.user_id = erasure.user_id
             and l.loaded_at <= erasure.requested_at
             and (l.masked_ip is not null or l.masked_device_id is not null)
        ) then 'logins'
        else 'done'
      end;
    end if;
  end if;

  update masking.erasures e
     set phase = erasure.phase,
         position_message_id = erasure.position_message_id,
         logins_cleared = erasure.logins_cleared,
         values_erased = erasure.values_erased,
         bodies_erased = erasure.bodies_erased,
         started_at = erasure.started_at,
         finished_at = case when erasure.phase = 'done' then clock_timestamp() end
   where e.erasure_id = erasure.erasure_id;
  if erasure.phase = 'done' then
    perform audit.append(
      'erased user',
      jsonb_build_object(
        'erasure_id', erasure.erasure_id, 'logins', erasure.logins_cleared,
        'values', erasure.values_erased, 'bodies', erasure.bodies_erased
      )
    );
    step.ended := 'done';
  end if;
  step.more := exists (select from masking.erasures e where e.phase <> 'done');
  step.work := format('erasure %s', erasure.erasure_id);
  step.rows := erasure.logins_cleared + erasure.bodies_erased;
  step.seconds := extract(epoch from clock_timestamp() - erasure.requested_at);
  return step;
end
$$;

comment on function masking.erase_step(integer) is 'Performs one step of the oldest erasure';
revoke all on function masking.erase_step(integer) from public;
grant execute on function masking.erase_step(integer) to logins_worker;
--! EndIncluded functions/masking.erase_step.sql
--! Included tables/masking.retention_policy.sql
-- For how many months logins are kept: one row. Null means forever. The other columns are the progress of the purge.
create table if not exists masking.retention_policy (
  singleton boolean primary key default true check (singleton),
  keep_months integer check (keep_months between 1 and 1200),
  purge_position uuid,
  purge_started_at timestamptz,
  purge_looked_at bigint not null default 0,
  purge_deleted bigint not null default 0
);

insert into masking.retention_policy (singleton) values (true) on conflict do nothing;

comment on table masking.retention_policy is 'For how many whole months logins are kept, and the progress of the purge';
comment on column masking.retention_policy.purge_position is 'Token up to which the vault has been purged; null while no purge is running';
comment on column masking.retention_policy.purge_started_at is 'When the first step of this purge began';
comment on column masking.retention_policy.purge_looked_at is 'Vault entries that this purge has checked';
comment on column masking.retention_policy.purge_deleted is 'Vault entries that this purge has deleted';
--! EndIncluded tables/masking.retention_policy.sql
--! Included functions/masking.set_retention.sql
-- masking.set_retention(keep_months integer) -> void
--
-- what:    sets for how many whole months, in addition to the current one, logins are kept; null means forever. Workers
--          apply it every day.
-- called:  by custodians
-- writes:  masking.retention_policy, audit.events
-- twice:   yes
-- raises:  22023 not from 1 to 1200
create or replace function masking.set_retention(keep_months integer)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if keep_months not between 1 and 1200 then
    raise exception using errcode = '22023', message = 'keep_months must be from 1 to 1200, or null to keep logins forever';
  end if;
  update masking.retention_policy set keep_months = set_retention.keep_months;
  perform audit.append('set retention', jsonb_build_object('keep_months', keep_months));
end
$$;

comment on function masking.set_retention(integer) is 'Sets for how many months logins are kept';
revoke all on function masking.set_retention(integer) from public;
grant execute on function masking.set_retention(integer) to logins_custodian;
--! EndIncluded functions/masking.set_retention.sql
--! Included functions/masking.retention.sql
-- masking.retention() -> (dropped integer, overdue integer)
--
-- what:    drops the monthly partitions that are older than the months to keep, deletes such rows from the default
--          partition, and starts a purge of the vault for values that only these logins had. Does nothing if logins are
--          kept forever.
-- returns: dropped: partitions dropped; overdue: partitions that are due but could not be removed because of another
--          session's lock (1 if only rows of the default partition are due). Then nothing is removed, and the job runs
--          again in five minutes.
-- called:  by the worker's task retention, every day
-- reads:   masking.retention_policy, the catalogs
-- writes:  public.user_logins and its partitions, graphile_worker's jobs, audit.events
-- locks:   public.user_logins and its default partition in ACCESS EXCLUSIVE mode, if there is a partition to drop.
--          While it waits, all sessions wait behind it, so it waits for at most two seconds. That is longer than
--          deadlock_timeout, after which Postgres cancels an autovacuum that is in the way.
-- twice:   yes
create or replace function masking.retention(
  out dropped integer,
  out overdue integer
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '2s'
as $$
declare
  oldest_kept timestamptz;
  partitions text[];
  partition_name text;
  deleted integer;
begin
  dropped := 0;
  overdue := 0;
  select date_trunc('month', now()) - make_interval(months => p.keep_months)
    into oldest_kept
    from masking.retention_policy p;
  if oldest_kept is null then
    return;
  end if;

  partitions := array(
    select c.relname
      from pg_inherits i
      join pg_class c on c.oid = i.inhrelid
     where i.inhparent = 'public.user_logins'::regclass
       and c.relname ~ '^user_logins_[0-9]{4}_[0-9]{2}$'
       and to_date(right(c.relname, 7), 'YYYY_MM') < oldest_kept::date
     order by c.relname
  );
  begin
    -- The same order of locks as in masking.purge_step: this row first, then user_logins.
    perform from masking.retention_policy p for update;
    if cardinality(partitions) > 0 then
      lock table only public.user_logins in access exclusive mode;
    end if;
    foreach partition_name in array partitions loop
      -- Another session dropped it while this one waited for the lock.
      continue when to_regclass('public.' || partition_name) is null;
      execute format('drop table public.%I', partition_name);
      perform audit.append('drop partition', jsonb_build_object('partition', partition_name));
      dropped := dropped + 1;
    end loop;
    delete from public.user_logins_default l where l.create_date < oldest_kept;
    get diagnostics deleted = row_count;

    if dropped > 0 or deleted > 0 then
      update masking.retention_policy set purge_position = '00000000-0000-0000-0000-000000000000';
      perform graphile_worker.add_job('purge_vault', job_key => 'purge_vault', priority => 10);
    end if;
  exception when lock_not_available then
    dropped := 0;
    overdue := greatest(cardinality(partitions), 1);
    perform graphile_worker.add_job(
      'retention', job_key => 'retention', run_at => now() + interval '5 minutes'
    );
  end;
end
$$;

comment on function masking.retention() is 'Drops logins that are older than the months to keep';
revoke all on function masking.retention() from public;
grant execute on function masking.retention() to logins_worker;
--! EndIncluded functions/masking.retention.sql
--! Included functions/masking.purge_step.sql
-- masking.purge_step(max_rows integer default 500) -> masking.step
--
-- what:    checks the next vault entries and deletes those that no login needs any more. The purge is done after the
--          last entry.
-- returns: rows: entries checked; total: null
-- called:  by the worker's task purge_vault, a transaction a step, after masking.retention has removed logins
-- reads:   public.user_logins
-- writes:  masking.vault, masking.retention_policy; audit.events at the end
-- twice:   yes: each call is the next step
-- raises:  22023 max_rows is not from 1 to 100000; 25000 not READ COMMITTED; 55P03 a lock was not available within two
--          seconds
create or replace function masking.purge_step(max_rows integer default 500)
returns masking.step
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
declare
  step masking.step;
  purge masking.retention_policy;
  chunk uuid[];
begin
  perform masking.check_step(max_rows);
  select p.* into purge from masking.retention_policy p for update skip locked;
  if purge.purge_position is null then
    step.more := false;
    return step;
  end if;
  step.began := purge.purge_started_at is null;
  purge.purge_started_at := coalesce(purge.purge_started_at, clock_timestamp());

  chunk := array(
    select v.token from masking.vault v where v.token > purge.purge_position order by v.token limit max_rows
  );
  purge.purge_looked_at := purge.purge_looked_at + cardinality(chunk);
  purge.purge_deleted := purge.purge_deleted + masking.delete_unreferenced(chunk);
  step.more := exists (select from masking.vault v where v.token > chunk[cardinality(chunk)]);
  step.work := 'purge of the vault';
  step.rows := purge.purge_looked_at;
  step.seconds := extract(epoch from clock_timestamp() - purge.purge_started_at);

  update masking.retention_policy
     set purge_position = case when step.more then chunk[cardinality(chunk)] end,
         purge_started_at = case when step.more then purge.purge_started_at end,
         purge_looked_at = case when step.more then purge.purge_looked_at else 0 end,
         purge_deleted = case when step.more then purge.purge_deleted else 0 end;
  if not step.more then
    perform audit.append(
      'purge vault',
      jsonb_build_object('looked_at', purge.purge_looked_at, 'deleted', purge.purge_deleted)
    );
    step.ended := 'done';
  end if;
  return step;
end
$$;

comment on function masking.purge_step(integer) is 'Deletes unreferenced vault entries, in steps';
revoke all on function masking.purge_step(integer) from public;
grant execute on function masking.purge_step(integer) to logins_worker;
--! EndIncluded functions/masking.purge_step.sql

-- Maintenance: partitions, overdue batches, jobs of workers that died, the ledger, messages to be tried again.
--! Included tables/staging.workers.sql
-- Workers that are alive. Each updates its row every few seconds, so that the jobs of a killed worker are released.
create table if not exists staging.workers (
  worker_id text primary key,
  seen_at timestamptz not null default now()
);

comment on table staging.workers is 'Heartbeats of workers';
--! EndIncluded tables/staging.workers.sql
--! Included tables/staging.totals.sql
-- Sums over the batches that have been removed from the ledger: one row.
create table if not exists staging.totals (
  singleton boolean primary key default true check (singleton),
  batches bigint not null default 0,
  inserted bigint not null default 0,
  duplicates bigint not null default 0,
  quarantined bigint not null default 0,
  lost_batches bigint not null default 0,
  no_addresses bigint not null default 0
);

insert into staging.totals (singleton) values (true) on conflict do nothing;

comment on table staging.totals is 'Sums over the batches that staging.clean_ledger() has removed';
--! EndIncluded tables/staging.totals.sql
--! Included functions/staging.maintain_partitions.sql
-- staging.maintain_partitions(months_ahead integer default 3) -> (made integer, missing integer)
--
-- what:    creates the monthly partitions of user_logins from last month to months_ahead months from now, and moves
--          rows of these months out of the default partition.
-- returns: made: partitions created; missing: partitions that could not be created because of another session's lock.
--          Then none is created, and the job runs again in five minutes. No row is lost meanwhile, because the default
--          partition accepts all.
-- called:  by the command migrate, and by the worker's task maintain_partitions when it starts and every day
-- reads:   the catalogs
-- writes:  public.user_logins and its partitions; graphile_worker's jobs
-- locks:   public.user_logins against concurrent calls, and the default partition in ACCESS EXCLUSIVE mode, because
--          attaching a partition needs that. While it waits, all sessions wait behind it, so it waits for at most two
--          seconds. That is longer than deadlock_timeout, after which Postgres cancels an autovacuum that is in the
--          way.
-- twice:   yes
-- raises:  22023 months_ahead is not from 0 to 120
create or replace function staging.maintain_partitions(
  months_ahead integer default 3,
  out made integer,
  out missing integer
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '2s'
as $$
declare
  months timestamptz[];
  month timestamptz;
  partition_name text;
begin
  if months_ahead is null or months_ahead not between 0 and 120 then
    raise exception using errcode = '22023', message = 'months_ahead must be from 0 to 120';
  end if;
  months := array(
    select m
      from generate_series(
        date_trunc('month', now()) - interval '1 month',
        date_trunc('month', now()) + make_interval(months => months_ahead),
        interval '1 month'
      ) m
     where to_regclass(to_char(m, '"public.user_logins_"YYYY_MM')) is null
  );
  made := 0;
  missing := cardinality(months);
  if missing = 0 then
    return;
  end if;

  begin
    lock table only public.user_logins in share update exclusive mode;
    lock table public.user_logins_default in access exclusive mode;
    foreach month in array months loop
      partition_name := to_char(month, '"user_logins_"YYYY_MM');
      -- Another session created it while this one waited for the lock.
      continue when to_regclass('public.' || partition_name) is not null;

      execute format('create table public.%I (like public.user_logins including all)', partition_name);
      -- Nobody may read a partition directly: see grants/row_security.sql.
      execute format('alter table public.%I enable row level security', partition_name);
      execute format(
        'with moved as (
           delete from public.user_logins_default where create_date >= %1$L and create_date < %2$L returning *
         )
         insert into public.%3$I select * from moved',
        month, month + interval '1 month', partition_name
      );
      execute format(
        'alter table public.user_logins attach partition public.%I for values from (%L) to (%L)',
        partition_name, month, month + interval '1 month'
      );
      made := made + 1;
    end loop;
    missing := 0;
  exception when lock_not_available then
    made := 0;
    perform graphile_worker.add_job(
      'maintain_partitions', job_key => 'maintain_partitions', run_at => now() + interval '5 minutes'
    );
  end;
end
$$;

comment on function staging.maintain_partitions(integer) is 'Creates the monthly partitions of user_logins ahead of time';
revoke all on function staging.maintain_partitions(integer) from public;
grant execute on function staging.maintain_partitions(integer) to logins_worker;
--! EndIncluded functions/staging.maintain_partitions.sql
--! Included functions/staging.sweep_batches.sql
-- staging.sweep_batches(overdue interval default '30 seconds') -> integer
--
-- what:    makes overdue batches due again: pending batches whose job is missing, has failed for good, or is scheduled
--          more than overdue from now. Returns how many. Does nothing while the database is sealed, because all jobs
--          would fail.
-- takes:   overdue: how long after staging a batch is left alone; 0 makes all batches due whose job is not running
-- called:  by the worker's task sweep_batches every minute, and with 0 when a worker has unsealed or runs once
-- reads:   staging.batches, graphile_worker.jobs
-- writes:  graphile_worker's jobs
-- twice:   yes
-- raises:  22023 overdue is null or not from 0 to a day; 55P03 a lock on graphile_worker's tables was not available
--          within two seconds
create or replace function staging.sweep_batches(overdue interval default '30 seconds')
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
declare
  swept integer;
begin
  if (overdue between interval '0' and interval '1 day') is not true then
    raise exception using errcode = '22023', message = 'overdue must be from 0 to a day';
  end if;
  if masking.is_sealed() then
    return 0;
  end if;

  -- Remove jobs that have failed for good; graphile-worker would keep them in addition to the new ones.
  perform graphile_worker.complete_jobs(array_agg(j.id))
     from graphile_worker.jobs j
    where starts_with(j.key, 'mask_batch:')
      and j.attempts >= j.max_attempts
      and j.locked_at is null;

  perform staging.add_mask_job(b.batch_id)
     from staging.batches b
     left join graphile_worker.jobs j on j.key = 'mask_batch:' || b.batch_id
    where b.acked_at is null
      and b.lost_at is null
      and b.staged_at <= now() - overdue
      and (
        j.id is null
        or (j.locked_at is null and j.run_at > now() + overdue)
      );
  get diagnostics swept = row_count;
  return swept;
end
$$;

comment on function staging.sweep_batches(interval) is 'Makes the jobs of overdue batches due again';
revoke all on function staging.sweep_batches(interval) from public;
grant execute on function staging.sweep_batches(interval) to logins_worker;
--! EndIncluded functions/staging.sweep_batches.sql
--! Included functions/staging.heartbeat.sql
-- staging.heartbeat(worker_id text) -> integer
--
-- what:    records that a worker is alive, and releases the jobs of workers without a heartbeat for 30 seconds.
--          graphile-worker itself releases a killed worker's jobs after four hours. Returns how many workers' jobs were
--          released.
-- takes:   worker_id: the id with which the worker locks jobs
-- called:  by each worker, every 10 seconds
-- reads:   graphile_worker.jobs
-- writes:  staging.workers, graphile_worker's jobs
-- twice:   yes
-- raises:  22023 worker_id is null or empty; 55P03 a lock on graphile_worker's tables was not available within two
--          seconds
create or replace function staging.heartbeat(worker_id text)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
declare
  dead text[];
begin
  if coalesce(worker_id, '') = '' then
    raise exception using errcode = '22023', message = 'a worker must have an id';
  end if;
  insert into staging.workers (worker_id, seen_at)
  values (heartbeat.worker_id, clock_timestamp())
  on conflict on constraint workers_pkey do update set seen_at = excluded.seen_at;

  -- The lock must be old too, because a worker locks its first jobs before its first heartbeat.
  select array_agg(distinct j.locked_by)
    into dead
    from graphile_worker.jobs j
   where j.locked_at < clock_timestamp() - interval '30 seconds'
     and not exists (
       select
         from staging.workers w
        where w.worker_id = j.locked_by
          and w.seen_at > clock_timestamp() - interval '30 seconds'
     );
  if dead is null then
    return 0;
  end if;

  perform graphile_worker.force_unlock_workers(dead);
  delete from staging.workers w where w.worker_id = any (dead);
  return cardinality(dead);
end
$$;

comment on function staging.heartbeat(text) is 'Records that a worker is alive, and releases the jobs of dead ones';
revoke all on function staging.heartbeat(text) from public;
grant execute on function staging.heartbeat(text) to logins_worker;
--! EndIncluded functions/staging.heartbeat.sql
--! Included functions/staging.clean_ledger.sql
-- staging.clean_ledger(keep interval default '30 days') -> integer
--
-- what:    removes batches that were acknowledged or lost longer than keep ago from the ledger, adds them to
--          staging.totals, and removes workers without a heartbeat for a day. Leaves rows that others have locked to
--          the next call. Returns how many batches it removed.
-- called:  by the worker's task clean_ledger, every day
-- writes:  staging.batches, staging.totals, staging.workers
-- twice:   yes
-- raises:  22023 keep is null or not from an hour to a hundred years
create or replace function staging.clean_ledger(keep interval default '30 days')
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
declare
  removed integer;
begin
  if (keep between interval '1 hour' and interval '100 years') is not true then
    raise exception using errcode = '22023', message = 'keep must be from one hour to a hundred years';
  end if;

  -- Only one session cleans at a time.
  perform from staging.totals t for update skip locked;
  if not found then
    return 0;
  end if;

  with ended as (
    select b.batch_id
    from staging.batches b
    where coalesce(b.acked_at, b.lost_at) < now() - keep
    for update skip locked
  ),
  gone as (
    delete from staging.batches b
     using ended e
     where b.batch_id = e.batch_id
    returning b.*
  ),
  sums as (
    select
      count(*) as batches,
      coalesce(sum(g.inserted), 0) as inserted,
      coalesce(sum(g.duplicates), 0) as duplicates,
      coalesce(sum(g.quarantined), 0) as quarantined,
      count(g.lost_at) as lost_batches,
      coalesce(sum(g.no_addresses), 0) as no_addresses
    from gone g
  )
  update staging.totals t
     set batches = t.batches + s.batches,
         inserted = t.inserted + s.inserted,
         duplicates = t.duplicates + s.duplicates,
         quarantined = t.quarantined + s.quarantined,
         lost_batches = t.lost_batches + s.lost_batches,
         no_addresses = t.no_addresses + s.no_addresses
    from sums s
  returning s.batches into removed;

  delete from staging.workers w
   where w.worker_id in (
     select o.worker_id from staging.workers o where o.seen_at < now() - interval '1 day' for update skip locked
   );
  return removed;
end
$$;

comment on function staging.clean_ledger(interval) is 'Removes old batches from the ledger and keeps their sums';
revoke all on function staging.clean_ledger(interval) from public;
grant execute on function staging.clean_ledger(interval) to logins_worker;
--! EndIncluded functions/staging.clean_ledger.sql
--! Included functions/staging.replay.sql
-- staging.replay(message_ids uuid[]) -> (rows integer, inserted integer, quarantined integer)
--
-- what:    takes messages out of quarantine and masks them again in this transaction, for example after an upgrade that
--          can load them. Messages that still cannot be loaded go back to quarantine.
-- called:  by custodians and workers
-- reads:   staging.quarantine, masking.keys, masking.kek, masking.erasures
-- writes:  staging.quarantine, staging.raw_messages, public.user_logins, masking.vault, staging.batches, audit.events
-- keeps:   bodies in memory (work_mem), off the disk
-- twice:   yes: messages that are not in quarantine are ignored, and nothing is recorded if none is
-- raises:  ML001 sealed; ML004 a ciphertext was changed; ML008 an erasure is not done yet; ML015 masking fails for a
--          reason that is not in the messages; 22023 message_ids is null; 25000 not READ COMMITTED; 54000 more than
--          10000 messages, or more than 64 MiB of bodies
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
set jit = off
set work_mem = '256MB'
as $$
declare
  replay_batch_id uuid := gen_random_uuid();
  counts masking.counts;
begin
  if message_ids is null then
    raise exception using errcode = '22023', message = 'message_ids must not be null';
  end if;
  if cardinality(message_ids) > 10000 then
    raise exception using errcode = '54000', message = 'staging.replay accepts up to 10000 messages';
  end if;
  -- A replayed login is newer than an earlier erasure, which would not clear it.
  lock table masking.erasures in share mode;
  if exists (select from masking.erasures e where e.phase <> 'done') then
    raise exception using
      errcode = 'ML008',
      message = 'an erasure is not done yet, and would miss messages that are replayed now',
      hint = 'The command "status" shows its progress';
  end if;
  -- As much as a batch of a loader can have. work_mem is several times that.
  if (
    select sum(octet_length(q.body)) from staging.quarantine q where q.message_id = any (message_ids)
  ) > 64 * 1024 * 1024 then
    raise exception using
      errcode = '54000',
      message = 'staging.replay accepts up to 64 MiB of bodies',
      hint = 'Pass fewer messages';
  end if;

  insert into staging.inbox (batch_id, message_ids, receipt_handles, sent_ats, receive_counts, bodies)
  select replay_batch_id, array[q.message_id], array[''], array[q.sent_at], array[0], array[b.body]
  from masking.decrypt_bodies(message_ids) b
  join staging.quarantine q on q.message_id = b.message_id;
  delete from staging.quarantine q using staging.raw_messages m
   where m.batch_id = replay_batch_id
     and q.message_id = m.message_id;

  counts := masking.mask_staged(replay_batch_id);
  rows := counts.rows;
  inserted := counts.inserted;
  quarantined := counts.quarantined;

  if rows > 0 then
    insert into staging.batches (batch_id, rows, masked_at, acked_at, inserted, duplicates, quarantined, no_addresses)
    values (
      replay_batch_id, replay.rows, clock_timestamp(), clock_timestamp(),
      replay.inserted, replay.rows - replay.inserted - replay.quarantined, replay.quarantined,
      counts.no_addresses
    );
    perform audit.append(
      'replay',
      jsonb_build_object('messages', rows, 'loaded', inserted, 'quarantined', quarantined)
    );
  end if;
end
$$;

comment on function staging.replay(uuid[]) is 'Masks quarantined messages again';
revoke all on function staging.replay(uuid[]) from public;
grant execute on function staging.replay(uuid[]) to logins_custodian, logins_worker;
--! EndIncluded functions/staging.replay.sql
--! Included functions/staging.status.sql
-- staging.status() -> one row of figures, without personal data
--
-- what:    returns what the command status shows of the database
-- returns: staged_rows, oldest_unmasked_seconds: rows staged and not yet masked, and the age of the oldest;
--          pending_batches, in_quarantine, sealed: now;
--          batches, loaded, duplicates, quarantined, lost_batches, no_addresses: since the beginning (no_addresses are
--          valid messages whose ip is not an address);
--          keys: [{purpose, field, version, state}];
--          rotations that are not done: [{purpose, field, from, to, state, phase, rows, total, percent, seconds_left,
--          problem}]; total and percent are null before the first step, seconds_left also while it is paused;
--          erasures that are not done: [{erasure_id, phase, logins}];
--          residue_…: what is still on the disk although it is not needed any more (staging.residue)
-- called:  by the command status, as logins_worker, logins_custodian or logins_auditor
-- reads:   staging.batches, staging.totals, staging.quarantine, masking.keys, masking.rotations, masking.erasures
create or replace function staging.status(
  out staged_rows bigint,
  out oldest_unmasked_seconds double precision,
  out pending_batches bigint,
  out batches bigint,
  out loaded bigint,
  out duplicates bigint,
  out quarantined bigint,
  out in_quarantine bigint,
  out lost_batches bigint,
  out no_addresses bigint,
  out sealed boolean,
  out keys jsonb,
  out rotations jsonb,
  out erasures jsonb,
  out residue_bodies bigint,
  out residue_seconds integer,
  out residue_slot_seconds integer,
  out residue_held_by integer[]
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select
    k.staged_rows,
    k.oldest_age_seconds,
    b.pending_batches,
    t.batches + b.batches,
    t.inserted + b.inserted,
    t.duplicates + b.duplicates,
    t.quarantined + b.quarantined,
    (select count(*) from staging.quarantine),
    t.lost_batches + b.lost_batches,
    t.no_addresses + b.no_addresses,
    masking.is_sealed(),
    (
      select coalesce(
        jsonb_agg(
          jsonb_build_object('purpose', y.purpose, 'field', y.field, 'version', y.version, 'state', y.state)
          order by y.purpose, y.version
        ),
        '[]'
      )
      from masking.keys y
    ),
    (
      select coalesce(
        jsonb_agg(
          jsonb_build_object(
            'purpose', r.purpose, 'field', r.field, 'from', r.from_version, 'to', r.to_version,
            'state', r.state, 'phase', r.phase, 'rows', r.rows_done, 'total', r.rows_total,
            -- Logins that arrive meanwhile are counted too, so it shows at most 99 until it is done.
            'percent', case when r.rows_total > 0 then least(100 * r.rows_done / r.rows_total, 99) end,
            'seconds_left', case
              when r.state = 'running' and r.rows_done between 1 and r.rows_total
                then ceil(extract(epoch from r.worked) * (r.rows_total - r.rows_done) / r.rows_done)
            end,
            'problem', r.problem
          )
          order by r.rotation_id
        ),
        '[]'
      )
      from masking.rotations r
      where r.state <> 'done'
    ),
    (
      select coalesce(
        jsonb_agg(
          jsonb_build_object('erasure_id', e.erasure_id, 'phase', e.phase, 'logins', e.logins_cleared)
          order by e.erasure_id
        ),
        '[]'
      )
      from masking.erasures e
      where e.phase <> 'done'
    ),
    d.bodies,
    d.oldest_seconds,
    d.slot_seconds,
    d.held_by
  from staging.backlog() k
  cross join staging.residue() d
  cross join staging.totals t
  cross join (
    select
      count(*) as batches,
      count(*) filter (where l.acked_at is null and l.lost_at is null) as pending_batches,
      coalesce(sum(l.inserted), 0) as inserted,
      coalesce(sum(l.duplicates), 0) as duplicates,
      coalesce(sum(l.quarantined), 0) as quarantined,
      count(l.lost_at) as lost_batches,
      coalesce(sum(l.no_addresses), 0) as no_addresses
    from staging.batches l
  ) b
$$;

comment on function staging.status() is 'The figures that the command status shows: one row, no personal data';
revoke all on function staging.status() from public;
grant execute on function staging.status() to logins_worker, logins_custodian, logins_auditor;
--! EndIncluded functions/staging.status.sql

-- Rights: who may use which schema and table. Each function's file has its own grants.
--! Included grants/schemas.sql
-- Who may use which schema. crypto is missing, because pgcrypto is for logins_owner only.
grant usage on schema staging to logins_loader, logins_worker, logins_custodian, logins_auditor;
grant usage on schema masking to logins_worker, logins_custodian, logins_auditor;
grant usage on schema unmask to logins_unmasker, logins_approver, logins_auditor;
grant usage on schema audit to logins_auditor;
--! EndIncluded grants/schemas.sql
--! Included grants/tables.sql
-- Who may use which tables and views, and how. What is missing here is for logins_owner only. Functions have their own
-- grants. test/security/privileges.test.ts compares the catalogs with a complete list.
grant select on public.user_logins, public.user_logins_compat to logins_analyst;

grant insert on staging.inbox to logins_loader;
grant select on staging.batches, staging.totals to logins_auditor;

grant insert on masking.kek_inbox to logins_worker, logins_custodian;
grant insert on masking.next_kek_inbox to logins_custodian;
grant select on masking.rotations, masking.erasures, masking.retention_policy to logins_custodian, logins_auditor;

grant select on unmask.pending_requests to logins_unmasker, logins_approver;
grant select on unmask.policy to logins_unmasker, logins_approver, logins_auditor;
grant select on unmask.requests, unmask.approvals, audit.events to logins_auditor;
--! EndIncluded grants/tables.sql
--! Included grants/row_security.sql
-- Row-level security for all tables of masked-logins, and a policy for each role that may read them. Without a policy,
-- members of predefined roles (pg_read_all_data, pg_write_all_data) reach no row, whatever their privileges on tables.
-- logins_owner and superusers are exempt.
--
-- The policies follow the grants: a role with SELECT on a table (grants/tables.sql) may see its rows. There is no policy
-- for writing, because only functions of logins_owner write.
--
-- public.user_logins itself has no row-level security, because analysts' queries would pay for it: under row-level
-- security, the planner does not use statistics for operators that are not leakproof, LIKE among them, and with
-- row_security = off every query would fail. There, a trigger refuses other writers (staging.refuse_write). Its
-- partitions have row-level security.
do $$
declare
  our_table record;
  reader regrole;
begin
  for our_table in
    select c.oid::regclass as name, c.relowner, c.relacl, c.relrowsecurity
      from pg_class c
     where c.relnamespace in (
             'staging'::regnamespace, 'masking'::regnamespace, 'unmask'::regnamespace, 'audit'::regnamespace
           )
       and c.relkind in ('r', 'p')
        or c.oid in (select i.inhrelid from pg_inherits i where i.inhparent = 'public.user_logins'::regclass)
     order by 1
  loop
    if not our_table.relrowsecurity then
      execute format('alter table %s enable row level security', our_table.name);
    end if;

    for reader in
      select a.grantee::regrole
        from aclexplode(our_table.relacl) a
       where a.privilege_type = 'SELECT' and a.grantee <> our_table.relowner
         and not exists (
           select from pg_policy p where p.polrelid = our_table.name and p.polname = a.grantee::regrole::name
         )
    loop
      execute format('create policy %s on %s for select to %1$s using (true)', reader, our_table.name);
    end loop;
  end loop;
end
$$;
--! EndIncluded grants/row_security.sql
