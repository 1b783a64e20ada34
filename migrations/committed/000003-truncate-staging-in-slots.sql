--! Previous: sha1:0b0ac4cb2438dd45c878739c07bc1e7381184293
--! Hash: sha1:d9580bd03b58b731b1964cb5ec4638ed3c23ca12
--! Message: truncate staging in slots

--! Included tables/staging.slots.sql
-- Which slot of staging.raw_messages takes what comes in: one row.
create table if not exists staging.slots (
  singleton boolean primary key default true check (singleton),
  current_slot smallint not null default 0 check (current_slot between 0 and 2),
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
