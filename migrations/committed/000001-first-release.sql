--! Previous: -
--! Hash: sha1:32c4903f00b0fdb9247bd2387e0f4eabc3c8df27
--! Message: first release

--! Included all.sql
-- Every object of masked-logins in the order in which one can be made after the other.
--
-- A database made from this file and one made from migrations/committed/ are the same: `npm test` compares them.

--! Included grants/default_privileges.sql
-- Postgres lets PUBLIC execute every new function. Only this form, without a schema, takes that back for the
-- functions that logins_owner will make; `in schema ... revoke` has no effect on it (ALTER DEFAULT PRIVILEGES).
alter default privileges for role logins_owner revoke execute on functions from public;
--! EndIncluded grants/default_privileges.sql

--! Included tables/public.user_logins.sql
-- The logins, masked: what analysts read.
--
-- create_date is the moment SQS took the message. It stays the same when SQS delivers again, so the primary key
-- makes loading idempotent. There is no CHECK: its error message would print the row.
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

-- Catches what no month's partition takes, so that no login is ever refused for its date.
create table if not exists public.user_logins_default partition of public.user_logins default;

comment on table public.user_logins is 'Login events with ip and device_id masked; one row a message';
comment on column public.user_logins.user_id is 'Who logged in, as the event says it';
comment on column public.user_logins.create_date is 'When SQS took the message (SentTimestamp), UTC';
comment on column public.user_logins.message_id is 'The SQS message, or a UUID derived from its id';
comment on column public.user_logins.masked_ip is 'Token of the address: equal addresses have equal tokens; the first byte is the key''s version';
comment on column public.user_logins.masked_device_id is 'Token of the device id: equal ids have equal tokens; the first byte is the key''s version';
comment on column public.user_logins.app_version is 'The whole version string';
comment on column public.user_logins.loaded_at is 'When the row was masked and loaded';
--! EndIncluded tables/public.user_logins.sql
--! Included tables/public.user_logins_compat.sql
-- user_logins in the shape of its older definition, for consumers who still need it: app_version is the major
-- version, create_date a UTC day. [0-9] and not \d, which under ICU collations takes digits that integer does not.
create or replace view public.user_logins_compat
with (security_barrier) as
select
  l.user_id::varchar(128) as user_id,
  l.device_type::varchar(32) as device_type,
  l.masked_ip::varchar(256) as masked_ip,
  l.masked_device_id::varchar(256) as masked_device_id,
  l.locale::varchar(32) as locale,
  substring(l.app_version from '^\s*[vV]?([0-9]{1,9})(?![0-9])')::integer as app_version,
  (l.create_date at time zone 'UTC')::date as create_date
from public.user_logins l;

comment on view public.user_logins_compat is 'user_logins as its older definition had it: major version, day, text masks';
--! EndIncluded tables/public.user_logins_compat.sql

--! Included tables/staging.raw_messages.sql
-- Messages as SQS delivered them, in the clear, for the seconds between COPY and masking.
--
-- UNLOGGED keeps them out of WAL, base backups and standbys. A crash of Postgres empties the table and loses
-- nothing: what was not masked is still in SQS. Statistics are logged even of an unlogged table, so no column
-- with content has any. No constraint either, not even NOT NULL: its error message would print the row. Row-level security without a policy keeps out pg_read_all_data, and because COPY refuses
-- a table that has it, messages come in through the view staging.inbox.
create unlogged table if not exists staging.raw_messages (
  batch_id uuid,
  message_id uuid,
  receipt_handle text,
  sent_at timestamptz,
  receive_count integer,
  body bytea
);

create index if not exists raw_messages_batch_id on staging.raw_messages (batch_id);

alter table staging.raw_messages
  alter column message_id set statistics 0,
  alter column receipt_handle set statistics 0,
  alter column body set statistics 0;

alter table staging.raw_messages enable row level security;

-- Rows live for seconds: the dead ones are to be gone soon, too.
alter table staging.raw_messages set (
  autovacuum_vacuum_threshold = 2000,
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_cost_delay = 0
);

comment on table staging.raw_messages is 'Raw messages on their way to masking; unlogged, emptied batch by batch';
--! EndIncluded tables/staging.raw_messages.sql
--! Included tables/staging.inbox.sql
-- The way into staging.raw_messages: the loader COPYs here, and nothing can be read from here.
--
-- COPY FROM refuses a table with row-level security ("COPY FROM not supported with row-level security"), but not
-- a view with an INSTEAD OF trigger. The detour costs 6 microseconds a row (docs/decisions.md).
create or replace view staging.inbox as
select
  m.batch_id,
  m.message_id,
  m.receipt_handle,
  m.sent_at,
  m.receive_count,
  m.body
from staging.raw_messages m
where false;

comment on view staging.inbox is 'Write-only inlet for raw messages: COPY staging.inbox FROM STDIN (FORMAT binary)';
--! EndIncluded tables/staging.inbox.sql
--! Included tables/staging.batches.sql
-- The ledger: a row a batch, logged, no personal data. Status, metrics and recovery read it.
--
-- staged -> masked -> acknowledged; lost says that a crash emptied staging before the batch was acknowledged, so
-- that its messages come back from SQS.
create table if not exists staging.batches (
  batch_id uuid primary key,
  rows integer not null,
  staged_at timestamptz not null default now(),
  masked_at timestamptz,
  acked_at timestamptz,
  lost_at timestamptz,
  inserted integer,
  duplicates integer,
  quarantined integer
);

-- What the loader's ceiling and the sweep look at: nearly always a handful of rows.
create index if not exists batches_open on staging.batches (staged_at) where acked_at is null and lost_at is null;

comment on table staging.batches is 'Ledger of batches; rows = inserted + duplicates + quarantined once masked';
comment on column staging.batches.rows is 'Messages the loader staged';
comment on column staging.batches.acked_at is 'When the batch''s messages were deleted from SQS';
comment on column staging.batches.lost_at is 'When the batch was found gone from staging; its messages come back from SQS';
comment on column staging.batches.inserted is 'Rows new in user_logins';
comment on column staging.batches.duplicates is 'Messages that were there already';
comment on column staging.batches.quarantined is 'Rows new in staging.quarantine';
--! EndIncluded tables/staging.batches.sql
--! Included tables/staging.totals.sql
-- What the ledger's rows add up to after they are cleaned away: one row.
create table if not exists staging.totals (
  singleton boolean primary key default true check (singleton),
  batches bigint not null default 0,
  inserted bigint not null default 0,
  duplicates bigint not null default 0,
  quarantined bigint not null default 0,
  lost_batches bigint not null default 0
);

insert into staging.totals (singleton) values (true) on conflict do nothing;

comment on table staging.totals is 'Sums over the batches that staging.clean_ledger() has removed';
--! EndIncluded tables/staging.totals.sql
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

comment on table staging.quarantine is 'Messages that could not be loaded, their bodies encrypted';
comment on column staging.quarantine.reason is 'Field and fault, never a value';
comment on column staging.quarantine.key_version is 'Version of the body cipher key';
--! EndIncluded tables/staging.quarantine.sql
--! Included tables/staging.workers.sql
-- Which workers are alive: each says so every few seconds, so that the jobs of a killed one are freed.
create table if not exists staging.workers (
  worker_id text primary key,
  seen_at timestamptz not null default now()
);

comment on table staging.workers is 'Heartbeats of workers';
--! EndIncluded tables/staging.workers.sql

--! Included tables/masking.keys.sql
-- The data keys, each wrapped (encrypted) under the key-encryption key.
--
-- token: HMAC key of a field; its version is the first byte of every token made with it, so versions are unique
--        over all fields and end at 255.
-- cipher: password of a field's ciphertexts, or of quarantined bodies.
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
alter table masking.keys enable row level security;

comment on table masking.keys is 'Data keys, wrapped under the key-encryption key';
comment on column masking.keys.state is 'active: in use for new values; retiring: still needed for old ones; destroyed: gone';
--! EndIncluded tables/masking.keys.sql
--! Included tables/masking.kek.sql
-- The key-encryption key (KEK): 32 bytes, one row; no row means sealed.
--
-- UNLOGGED: absent from WAL, base backups and standbys, and gone after a crash or a restore. No CHECK and no
-- statistics: both would show it. It comes in through the view masking.kek_inlet.
create unlogged table if not exists masking.kek (
  singleton boolean primary key default true,
  kek bytea not null
);

alter table masking.kek alter column kek set statistics 0;
alter table masking.kek enable row level security;

comment on table masking.kek is 'The key-encryption key while the database is unsealed; empty while it is sealed';
--! EndIncluded tables/masking.kek.sql
--! Included tables/masking.kek_inlet.sql
-- The way in for the key-encryption key: COPY masking.kek_inlet FROM STDIN (FORMAT binary), one column of 32 bytes.
--
-- Binary COPY data reaches no log, neither as statement nor as parameter nor in an error's context; statement text
-- and bind parameters do. masking.receive_kek() checks the key before it is kept.
create or replace view masking.kek_inlet as
select k.kek
from masking.kek k
where false;

comment on view masking.kek_inlet is 'Write-only inlet that unseals the database';
--! EndIncluded tables/masking.kek_inlet.sql
--! Included tables/masking.vault.sql
-- What was masked, encrypted: a row a distinct value, found by its token.
create table if not exists masking.vault (
  token uuid primary key,
  key_version integer not null,
  ciphertext bytea not null
);

alter table masking.vault alter column ciphertext set statistics 0;
-- Ciphertext does not compress.
alter table masking.vault alter column ciphertext set storage external;
alter table masking.vault enable row level security;

comment on table masking.vault is 'Ciphertext of every masked value, one row a distinct value';
comment on column masking.vault.token is 'The mask; its first byte is the version of the token key';
comment on column masking.vault.key_version is 'Version of the cipher key';
comment on column masking.vault.ciphertext is 'OpenPGP message (RFC 4880): AES-256, padded plaintext, integrity-protected';
--! EndIncluded tables/masking.vault.sql

--! Included functions/masking.cipher_options.sql
-- masking.cipher_options() -> text
--
-- what:    the options of every pgp_sym_encrypt here: AES-256; s2k-mode=1 (salted, not iterated), because the
--          password is a random 256-bit key that stretching cannot improve, and the default's stretching costs
--          25 times the encryption; no compression, whose length would tell of the content. The integrity check
--          (MDC) is on by default and stays on.
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

comment on function masking.cipher_options() is 'The options of every pgp_sym_encrypt: AES-256, no stretching, no compression';
revoke all on function masking.cipher_options() from public;
--! EndIncluded functions/masking.cipher_options.sql
--! Included functions/masking.padded.sql
-- masking.padded(value text) -> bytea
--
-- what:    the value in UTF-8, padded with 0x80 0x00... (ISO/IEC 7816-4) to 64 bytes, or to 320 where it does not
--          fit into 63: a ciphertext's length tells no more than whether a value is longer than any address and
--          nearly any device id. Every ciphertext at 320 bytes would cost a third more time and three times the disk.
-- called:  by masking.mask_rows and whatever encrypts a value again
-- raises:  nothing for values of up to 319 bytes; longer ones are quarantined before they come here
create or replace function masking.padded(value text)
returns bytea
language sql
immutable
parallel safe
as $$
  select convert_to(value, 'UTF8')
      || substring(
           '\x80'::bytea || decode(repeat('00', 319), 'hex'),
           1,
           case when octet_length(value) < 64 then 64 else 320 end - octet_length(value)
         )
$$;

comment on function masking.padded(text) is 'A value as it is encrypted: UTF-8, padded to 64 or 320 bytes';
revoke all on function masking.padded(text) from public;
--! EndIncluded functions/masking.padded.sql
--! Included functions/masking.canonical_ip.sql
-- masking.canonical_ip(ip text) -> text
--
-- what:    the one way to write an address, so that equal addresses have equal tokens: as host(inet) renders it,
--          an IPv4-mapped IPv6 address as the IPv4 address; a network (1.2.3.0/24) or what does not parse as it
--          stands; null for null and ''
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
    when ip is null or ip = '' then null
    when strpos(ip, '/') > 0 or not pg_input_is_valid(ip, 'inet') then ip
    when family(ip::inet) = 6 and ip::inet <<= inet '::ffff:0:0/96' then substr(host(ip::inet), 8)
    else host(ip::inet)
  end
$$;

comment on function masking.canonical_ip(text) is 'An address in the one form that is masked';
revoke all on function masking.canonical_ip(text) from public;
--! EndIncluded functions/masking.canonical_ip.sql
--! Included functions/masking.token_of.sql
-- masking.token_of(digest bytea, key_version integer) -> uuid
--
-- what:    the token: a UUIDv8 whose first byte is the version of the token key and whose other free bits are the
--          digest's. Null for null.
-- takes:   digest: HMAC-SHA256 (RFC 2104) of the canonical value under the field's token key, 32 bytes.
--          Pass a column and not an expression: the planner inlines this function, and would compute an
--          expression three times.
-- called:  by masking.mask_rows and whatever computes a token again
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

comment on function masking.token_of(bytea, integer) is 'The token of a digest: a UUIDv8 whose first byte is the key''s version';
revoke all on function masking.token_of(bytea, integer) from public;
--! EndIncluded functions/masking.token_of.sql
--! Included functions/masking.is_sealed.sql
-- masking.is_sealed() -> boolean
--
-- what:    whether the key-encryption key is absent, so that nothing can be masked or revealed
-- called:  by workers and custodians
-- reads:   masking.kek
-- twice:   yes
create or replace function masking.is_sealed()
returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select not exists (select from masking.kek)
$$;

comment on function masking.is_sealed() is 'Whether the key-encryption key is absent';
revoke all on function masking.is_sealed() from public;
grant execute on function masking.is_sealed() to logins_worker, logins_custodian, logins_auditor;
--! EndIncluded functions/masking.is_sealed.sql
--! Included functions/masking.unwrapped.sql
-- masking.unwrapped(wrapped bytea) -> bytea
--
-- what:    a data key in the clear
-- called:  by functions of masking alone. STABLE and never IMMUTABLE: the planner would fold an immutable call
--          into the plan, and EXPLAIN would print the key.
-- reads:   masking.kek
-- raises:  ML001 sealed; ML002 the key-encryption key does not fit
create or replace function masking.unwrapped(wrapped bytea)
returns bytea
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  kek bytea := (select k.kek from masking.kek k);
begin
  if kek is null then
    raise exception using
      errcode = 'ML001',
      message = 'the database is sealed: the key-encryption key is not in it',
      hint = 'A worker with MASKING_KEK or MASKING_KEK_FILE set unseals it by itself';
  end if;
  return crypto.pgp_sym_decrypt_bytea(wrapped, encode(kek, 'hex'));
exception
  -- pgcrypto's error for a wrong password or a damaged ciphertext.
  when external_routine_invocation_exception then
    raise exception using
      errcode = 'ML002',
      message = 'the key-encryption key does not open the data keys',
      hint = 'Unseal with the key that this database was set up with';
end
$$;

comment on function masking.unwrapped(bytea) is 'A data key in the clear, for functions of masking alone';
revoke all on function masking.unwrapped(bytea) from public;
--! EndIncluded functions/masking.unwrapped.sql
--! Included functions/masking.active_key.sql
-- masking.active_key(purpose text, field text) -> (version integer, key bytea)
--
-- what:    the key that new values of a field are masked with, in the clear
-- called:  by functions of masking alone
-- reads:   masking.keys, masking.kek
-- raises:  ML001 sealed; ML002 the key-encryption key does not fit
create or replace function masking.active_key(purpose text, field text, out version integer, out key bytea)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
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
  -- Before the first unsealing there are no keys; unwrapping null then says that the database is sealed.
  key := masking.unwrapped(wrapped);
end
$$;

comment on function masking.active_key(text, text) is 'The active key of a purpose and field, in the clear, for functions of masking alone';
revoke all on function masking.active_key(text, text) from public;
--! EndIncluded functions/masking.active_key.sql
--! Included functions/masking.create_key.sql
-- masking.create_key(purpose text, field text) -> integer
--
-- what:    makes a data key from the database's random source, stores it wrapped, and returns its version. It is
--          active at once; the active one before it becomes retiring.
-- called:  by masking.receive_kek at the first unsealing, and by rotation
-- reads:   masking.kek
-- writes:  masking.keys
-- twice:   makes another key
-- raises:  ML001 sealed; ML005 token keys have run out (255 versions)
create or replace function masking.create_key(purpose text, field text)
returns integer
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  new_version integer;
  kek bytea := (select k.kek from masking.kek k);
begin
  if kek is null then
    perform masking.unwrapped(null); -- says what it means to be sealed
  end if;
  lock table masking.keys in share row exclusive mode;

  select coalesce(max(k.version), 0) + 1
    into new_version
    from masking.keys k
   where k.purpose = create_key.purpose;
  if create_key.purpose = 'token' and new_version > 255 then
    raise exception using
      errcode = 'ML005',
      message = 'no version is left for another token key: a token has one byte for it, and 255 have been made';
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

comment on function masking.create_key(text, text) is 'Makes a data key, wrapped and active, and returns its version';
revoke all on function masking.create_key(text, text) from public;
--! EndIncluded functions/masking.create_key.sql
--! Included functions/masking.receive_kek.sql
-- masking.receive_kek() -> trigger, and the trigger that unseals
--
-- what:    takes the key-encryption key that was copied into masking.kek_inlet, checks that it opens every data key,
--          and keeps it. The first one that a database ever sees becomes its key, and the data keys are made.
-- called:  by COPY masking.kek_inlet, as logins_worker or logins_custodian
-- reads:   masking.keys
-- writes:  masking.kek; masking.keys at the first unsealing
-- twice:   yes: the key that is there already is taken again, and changes nothing
-- raises:  ML002 not the key of this database, or not 32 bytes; ML003 unsealed already, with another key
create or replace function masking.receive_kek()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  present bytea;
begin
  -- One at a time: two workers that start together both unseal.
  lock table masking.kek in share row exclusive mode;
  select k.kek into present from masking.kek k;
  if present = new.kek then
    return null;
  elsif present is not null then
    raise exception using
      errcode = 'ML003',
      message = 'the database is unsealed already, with another key-encryption key',
      hint = 'Check which key this process was given';
  elsif new.kek is null or octet_length(new.kek) <> 32 then
    raise exception using
      errcode = 'ML002',
      message = 'a key-encryption key has 32 bytes';
  end if;

  insert into masking.kek (kek) values (new.kek);
  perform masking.unwrapped(k.wrapped) from masking.keys k where k.state <> 'destroyed';

  if not exists (select from masking.keys) then
    perform masking.create_key('token', 'ip');
    perform masking.create_key('token', 'device_id');
    perform masking.create_key('cipher', 'ip');
    perform masking.create_key('cipher', 'device_id');
    perform masking.create_key('cipher', 'body');
  end if;
  return new;
end
$$;

comment on function masking.receive_kek() is 'Checks and keeps the key-encryption key copied into masking.kek_inlet';
revoke all on function masking.receive_kek() from public;

create or replace trigger receive_kek
instead of insert on masking.kek_inlet
for each row execute function masking.receive_kek();
--! EndIncluded functions/masking.receive_kek.sql
--! Included functions/masking.seal.sql
-- masking.seal() -> void
--
-- what:    removes the key-encryption key: masking and revealing fail with ML001 until somebody unseals. A worker
--          that has the key does so within seconds: stop the workers first where that is not wanted.
-- called:  by custodians
-- writes:  masking.kek (TRUNCATE, which also removes it from disk; waits for batches that are being masked)
-- twice:   yes
create or replace function masking.seal()
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  truncate masking.kek;
end
$$;

comment on function masking.seal() is 'Removes the key-encryption key from the database';
revoke all on function masking.seal() from public;
grant execute on function masking.seal() to logins_custodian;
--! EndIncluded functions/masking.seal.sql

--! Included functions/masking.read_body.sql
-- masking.read_body(body bytea) -> jsonb
--
-- what:    the event in a body, or null for a body that Postgres cannot hold as jsonb: no UTF-8, a NUL byte, no
--          JSON, \u0000, a lone surrogate, 1e999999, nesting beyond the stack
-- called:  by masking.mask_rows once a batch has shown that one of its bodies is such
-- raises:  nothing that a body can cause. Each call is a sub-transaction, the only thing that stops every such
--          error: pg_input_is_valid and `is json` raise 54001 themselves on deep nesting.
create or replace function masking.read_body(body bytea)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
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
--! Included functions/masking.fault_of_body.sql
-- masking.fault_of_body(body bytea) -> text
--
-- what:    why a body cannot be read, in words that hold nothing of it; null for one that can be
-- called:  by masking.mask_rows for bodies that masking.read_body returned null for
-- raises:  nothing that a body can cause
create or replace function masking.fault_of_body(body bytea)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  perform convert_from(body, 'UTF8')::jsonb;
  return null;
exception when others then
  if not masking.is_fault_of_data(sqlstate) then
    raise;
  end if;
  return case sqlstate
    when '22021' then 'body: not UTF-8 text, or holds a NUL byte'
    when '22P02' then 'body: not JSON'
    when '22P05' then 'body: holds an escape that no text can hold (\u0000 or half a surrogate pair)'
    when '22003' then 'body: holds a number out of range'
    when '54001' then 'body: nested too deeply'
    else 'body: cannot be read (SQLSTATE ' || sqlstate || ')'
  end;
end
$$;

comment on function masking.fault_of_body(bytea) is 'Why a body cannot be read, without a word of it';
revoke all on function masking.fault_of_body(bytea) from public;
--! EndIncluded functions/masking.fault_of_body.sql
--! Included functions/masking.is_fault_of_data.sql
-- masking.is_fault_of_data(code text) -> boolean
--
-- what:    whether an SQLSTATE says that the data at hand caused the error, so that its row is to be isolated; the
--          others (sealed, deadlock, disk full, cancelled, shutdown, damaged files, our own bugs) have nothing to
--          do with the row, and trying again or repairing something is the answer
-- called:  by whatever catches errors while masking
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

comment on function masking.is_fault_of_data(text) is 'Whether an SQLSTATE was caused by the data at hand';
revoke all on function masking.is_fault_of_data(text) from public;
--! EndIncluded functions/masking.is_fault_of_data.sql
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
-- and, unlike a custom one, never has a key folded into it.
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
--! Included functions/masking.quarantine_message.sql
-- masking.quarantine_message(batch_id uuid, message_id uuid, reason text) -> boolean
--
-- what:    quarantines one message that masking.mask_rows could not handle, unless it was loaded before; says whether
--          it is new there
-- called:  by masking.mask_one_by_one, for the row nobody foresaw
-- reads:   staging.raw_messages, public.user_logins, masking.keys, masking.kek
-- writes:  staging.quarantine
-- twice:   yes
-- raises:  ML001, ML002
create or replace function masking.quarantine_message(batch_id uuid, message_id uuid, reason text)
returns boolean
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
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
    crypto.pgp_sym_encrypt_bytea(m.body, encode(body_cipher.key, 'hex'), masking.cipher_options())
  from staging.raw_messages m
  where m.batch_id = quarantine_message.batch_id
    and m.message_id = quarantine_message.message_id
    -- Loaded once, it stays loaded.
    and not exists (
      select
      from public.user_logins l
      where l.user_id = masking.read_body(m.body) ->> 'user_id'
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
--! Included functions/masking.mask_one_by_one.sql
-- masking.mask_one_by_one(batch_id uuid) -> (rows integer, inserted integer, quarantined integer)
--
-- what:    masks a batch message by message, each in a sub-transaction, and quarantines those that fail: the way out
--          for a row that nobody foresaw, so that it harms itself only
-- called:  by masking.mask_staged when a batch has failed as a whole twice
-- reads:   staging.raw_messages, masking.keys, masking.kek
-- writes:  masking.vault, public.user_logins, staging.quarantine
-- twice:   yes
-- raises:  ML001, ML002, faults of the server; 40P01 where two batches come this way at once with the same new values in
--          another order: the job's next try mends that
create or replace function masking.mask_one_by_one(
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
  one record;
  counts record;
begin
  rows := 0;
  inserted := 0;
  quarantined := 0;
  for one in
    select m.message_id, count(*)::integer as copies
      from staging.raw_messages m
     where m.batch_id = mask_one_by_one.batch_id
     group by m.message_id
     order by m.message_id
  loop
    rows := rows + one.copies;
    begin
      counts := masking.mask_rows(batch_id, lenient => true, only_message_id => one.message_id);
      inserted := inserted + counts.inserted;
      quarantined := quarantined + counts.quarantined;
    exception when others then
      if not masking.is_fault_of_data(sqlstate) then
        raise;
      end if;
      if masking.quarantine_message(
        batch_id, one.message_id, reason => 'message: cannot be masked (SQLSTATE ' || sqlstate || ')'
      ) then
        quarantined := quarantined + 1;
      end if;
    end;
  end loop;
end
$$;

comment on function masking.mask_one_by_one(uuid) is 'Masks a batch message by message and quarantines those that fail';
revoke all on function masking.mask_one_by_one(uuid) from public;
--! EndIncluded functions/masking.mask_one_by_one.sql
--! Included functions/masking.mask_staged.sql
-- masking.mask_staged(batch_id uuid) -> (rows integer, inserted integer, quarantined integer)
--
-- what:    masks what is staged of a batch: all at once and quickly; where a body makes that fail, all at once with
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
--! Included functions/masking.mask_batch.sql
-- masking.mask_batch(batch_id uuid) -> setof (message_id uuid, receipt_handle text)
--
-- what:    masks a staged batch, writes the outcome to its row in the ledger, and returns the receipts with which
--          the messages may be deleted from SQS once this transaction is committed
-- called:  by the worker's task mask_batch, as logins_worker
-- reads:   staging.raw_messages, masking.keys, masking.kek
-- writes:  masking.vault, public.user_logins, staging.quarantine, staging.batches
-- twice:   yes: a masked batch returns its receipts again; one whose rows a crash took is marked lost and returns
--          none, so that SQS delivers its messages again
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

--! Included functions/staging.receive_message.sql
-- staging.receive_message() -> trigger, and the trigger that fills staging.raw_messages
--
-- what:    puts a row copied into staging.inbox into staging.raw_messages
-- called:  by COPY staging.inbox, as logins_loader
-- writes:  staging.raw_messages
-- twice:   no: a row a call; staging.submit_batch counts them
-- raises:  ML014 a column is null
create or replace function staging.receive_message()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if new.batch_id is null or new.message_id is null or new.receipt_handle is null
     or new.sent_at is null or new.receive_count is null or new.body is null then
    raise exception using errcode = 'ML014', message = 'a staged message has no null column';
  end if;
  insert into staging.raw_messages (batch_id, message_id, receipt_handle, sent_at, receive_count, body)
  values (new.batch_id, new.message_id, new.receipt_handle, new.sent_at, new.receive_count, new.body);
  return new;
end
$$;

comment on function staging.receive_message() is 'Puts a row copied into staging.inbox into staging.raw_messages';
revoke all on function staging.receive_message() from public;

create or replace trigger receive_message
instead of insert on staging.inbox
for each row execute function staging.receive_message();
--! EndIncluded functions/staging.receive_message.sql
--! Included functions/staging.add_mask_job.sql
-- staging.add_mask_job(batch_id uuid) -> void
--
-- what:    adds the graphile-worker job that masks a batch, or makes the one that is there due now
-- called:  by staging.submit_batch and staging.sweep_batches
-- writes:  graphile_worker's jobs
-- twice:   yes: the job's key is the batch
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
-- what:    writes a staged batch into the ledger and adds its job
-- called:  by the loader, in the transaction that copied the rows
-- reads:   staging.raw_messages (counts)
-- writes:  staging.batches, graphile_worker's jobs
-- twice:   raises ML011: the loader, unsure whether its COMMIT arrived, asks again with the same batch_id and takes
--          that as its answer
-- raises:  ML010 other than row_count rows are staged; ML011 submitted already
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
  insert into staging.batches (batch_id, rows)
  values (submit_batch.batch_id, row_count)
  on conflict do nothing;
  if not found then
    raise exception using errcode = 'ML011', message = 'this batch has been submitted already';
  end if;

  select count(*) into staged from staging.raw_messages m where m.batch_id = submit_batch.batch_id;
  if staged <> row_count or row_count < 1 then
    raise exception using
      errcode = 'ML010',
      message = format('the batch was submitted as %s rows and %s are staged', row_count, staged);
  end if;

  perform staging.add_mask_job(batch_id);
end
$$;

comment on function staging.submit_batch(uuid, integer) is 'Writes a staged batch into the ledger and adds its job';
revoke all on function staging.submit_batch(uuid, integer) from public;
grant execute on function staging.submit_batch(uuid, integer) to logins_loader;
--! EndIncluded functions/staging.submit_batch.sql
--! Included functions/staging.backlog.sql
-- staging.backlog() -> (staged_rows bigint, oldest_staged_at timestamptz, oldest_age_seconds double precision)
--
-- what:    how many rows are staged and not yet masked, and since when the oldest waits (null where none does): one row
-- called:  by the loader, which pauses when either passes its ceiling
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
--! Included functions/staging.close_batch.sql
-- staging.close_batch(batch_id uuid) -> void
--
-- what:    empties a masked batch from staging and notes that it was acknowledged
-- called:  by the worker's task mask_batch after the batch's messages were deleted from SQS
-- writes:  staging.raw_messages, staging.batches
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

  delete from staging.raw_messages m where m.batch_id = close_batch.batch_id;
end
$$;

comment on function staging.close_batch(uuid) is 'Empties an acknowledged batch from staging';
revoke all on function staging.close_batch(uuid) from public;
grant execute on function staging.close_batch(uuid) to logins_worker;
--! EndIncluded functions/staging.close_batch.sql
--! Included functions/staging.sweep_batches.sql
-- staging.sweep_batches(overdue interval default '30 seconds') -> integer
--
-- what:    makes due again what has waited too long: batches that are not acknowledged and whose job is gone, has
--          given up, or has backed off for longer than overdue. Returns how many. Does nothing while the database is
--          sealed, because every job would fail.
-- takes:   overdue: how long after staging a batch is to be left alone; 0 makes everything due that is not under way
-- called:  by the worker's task sweep_batches every minute, and with 0 when a worker has unsealed or runs once
-- reads:   staging.batches, graphile_worker.jobs
-- writes:  graphile_worker's jobs
-- twice:   yes
create or replace function staging.sweep_batches(overdue interval default '30 seconds')
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  swept integer;
begin
  if masking.is_sealed() then
    return 0;
  end if;

  -- graphile-worker would keep a job that has given up beside the one that takes its place.
  perform graphile_worker.complete_jobs(array_agg(j.id))
     from graphile_worker.jobs j
    where j.key like 'mask\_batch:%'
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
-- what:    notes that a worker is alive, and frees the jobs of workers that have not said so for 30 seconds:
--          graphile-worker itself frees the jobs of a killed worker after four hours. Returns how many workers' jobs
--          were freed.
-- takes:   worker_id: the id under which the worker locks jobs
-- called:  by every worker, every 10 seconds
-- reads:   graphile_worker.jobs
-- writes:  staging.workers, graphile_worker's jobs
-- twice:   yes
create or replace function staging.heartbeat(worker_id text)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  dead text[];
begin
  insert into staging.workers (worker_id, seen_at)
  values (heartbeat.worker_id, clock_timestamp())
  on conflict on constraint workers_pkey do update set seen_at = excluded.seen_at;

  -- A worker locks its first jobs before its first heartbeat, so a lock must be old as well.
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

comment on function staging.heartbeat(text) is 'Notes that a worker is alive and frees the jobs of dead ones';
revoke all on function staging.heartbeat(text) from public;
grant execute on function staging.heartbeat(text) to logins_worker;
--! EndIncluded functions/staging.heartbeat.sql
--! Included functions/staging.maintain_partitions.sql
-- staging.maintain_partitions(months_ahead integer default 3) -> integer
--
-- what:    makes the monthly partitions of user_logins from last month to months_ahead months from now, and moves rows
--          of such a month that had to go to the default partition. Returns how many partitions it made.
-- called:  by npm run migrate, and by the worker's task maintain_partitions at its start and every day
-- reads:   the catalogs
-- writes:  public.user_logins and its partitions
-- twice:   yes
-- raises:  22023 months_ahead out of range (0 to 120)
create or replace function staging.maintain_partitions(months_ahead integer default 3)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  month timestamptz;
  partition_name text;
  made integer := 0;
begin
  if months_ahead is null or months_ahead not between 0 and 120 then
    raise exception using errcode = '22023', message = 'months_ahead must be from 0 to 120';
  end if;
  -- One at a time: two workers start together.
  perform pg_advisory_xact_lock(hashtextextended('masked_logins.maintain_partitions', 0));

  for month in
    select generate_series(
      date_trunc('month', now()) - interval '1 month',
      date_trunc('month', now()) + make_interval(months => months_ahead),
      interval '1 month'
    )
  loop
    partition_name := to_char(month, '"user_logins_"YYYY_MM');
    continue when to_regclass('public.' || partition_name) is not null;

    execute format('create table public.%I (like public.user_logins including all)', partition_name);
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
  return made;
end
$$;

comment on function staging.maintain_partitions(integer) is 'Makes the monthly partitions of user_logins ahead of time';
revoke all on function staging.maintain_partitions(integer) from public;
grant execute on function staging.maintain_partitions(integer) to logins_worker;
--! EndIncluded functions/staging.maintain_partitions.sql
--! Included functions/staging.clean_ledger.sql
-- staging.clean_ledger(keep interval default '30 days') -> integer
--
-- what:    removes the ledger's rows of batches that ended (acknowledged or lost) longer than keep ago, adds them to
--          staging.totals, and forgets workers not seen for a day. Returns how many batches it removed.
-- called:  by the worker's task clean_ledger, every day
-- writes:  staging.batches, staging.totals, staging.workers
-- twice:   yes
-- raises:  22023 keep shorter than an hour
create or replace function staging.clean_ledger(keep interval default '30 days')
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  removed integer;
begin
  if keep is null or keep < interval '1 hour' then
    raise exception using errcode = '22023', message = 'keep must be an hour at least';
  end if;

  with gone as (
    delete from staging.batches b
     where coalesce(b.acked_at, b.lost_at) < now() - keep
    returning b.*
  ),
  sums as (
    select
      count(*) as batches,
      coalesce(sum(g.inserted), 0) as inserted,
      coalesce(sum(g.duplicates), 0) as duplicates,
      coalesce(sum(g.quarantined), 0) as quarantined,
      count(g.lost_at) as lost_batches
    from gone g
  )
  update staging.totals t
     set batches = t.batches + s.batches,
         inserted = t.inserted + s.inserted,
         duplicates = t.duplicates + s.duplicates,
         quarantined = t.quarantined + s.quarantined,
         lost_batches = t.lost_batches + s.lost_batches
    from sums s
  returning s.batches into removed;

  delete from staging.workers w where w.seen_at < now() - interval '1 day';
  return removed;
end
$$;

comment on function staging.clean_ledger(interval) is 'Removes old ended batches from the ledger, keeping their sums';
revoke all on function staging.clean_ledger(interval) from public;
grant execute on function staging.clean_ledger(interval) to logins_worker;
--! EndIncluded functions/staging.clean_ledger.sql
--! Included functions/staging.status.sql
-- staging.status() -> one row of figures, none of them about anybody
--
-- what:    what npm run status shows of the database: rows staged and not yet masked, the age of the oldest in
--          seconds, open batches (not yet acknowledged), and since the beginning: batches, rows loaded, duplicates,
--          messages quarantined, lost batches; how many are in quarantine now; sealed or not; the keys
--          [{purpose, field, version, state}]
-- called:  by npm run status, as logins_worker, logins_custodian or logins_auditor
-- reads:   staging.batches, staging.totals, staging.quarantine, masking.keys
create or replace function staging.status(
  out staged_rows bigint,
  out oldest_unmasked_seconds double precision,
  out open_batches bigint,
  out batches bigint,
  out loaded bigint,
  out duplicates bigint,
  out quarantined bigint,
  out in_quarantine bigint,
  out lost_batches bigint,
  out sealed boolean,
  out keys jsonb
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select
    k.staged_rows,
    k.oldest_age_seconds,
    b.open_batches,
    t.batches + b.batches,
    t.inserted + b.inserted,
    t.duplicates + b.duplicates,
    t.quarantined + b.quarantined,
    (select count(*) from staging.quarantine),
    t.lost_batches + b.lost_batches,
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
    )
  from staging.backlog() k
  cross join staging.totals t
  cross join (
    select
      count(*) as batches,
      count(*) filter (where l.acked_at is null and l.lost_at is null) as open_batches,
      coalesce(sum(l.inserted), 0) as inserted,
      coalesce(sum(l.duplicates), 0) as duplicates,
      coalesce(sum(l.quarantined), 0) as quarantined,
      count(l.lost_at) as lost_batches
    from staging.batches l
  ) b
$$;

comment on function staging.status() is 'The figures of npm run status: one row, no personal data';
revoke all on function staging.status() from public;
grant execute on function staging.status() to logins_worker, logins_custodian, logins_auditor;
--! EndIncluded functions/staging.status.sql

--! Included grants/schemas.sql
-- Who may name the objects of which schema. crypto has no line here: pgcrypto is for logins_owner alone.
grant usage on schema staging to logins_loader, logins_worker, logins_custodian, logins_auditor;
grant usage on schema masking to logins_worker, logins_custodian;
--! EndIncluded grants/schemas.sql
--! Included grants/tables.sql
-- Who may do what to tables and views. What is not here is for logins_owner alone; functions bring their own
-- grants. test/security/privileges.test.ts compares the catalogs with a complete list.
grant select on public.user_logins, public.user_logins_compat to logins_analyst;

grant insert on staging.inbox to logins_loader;
grant select on staging.batches, staging.totals to logins_auditor;

grant insert on masking.kek_inlet to logins_worker, logins_custodian;
--! EndIncluded grants/tables.sql
--! EndIncluded all.sql
