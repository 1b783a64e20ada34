--! Previous: sha1:a44d628d8d6a4cc1ccde6b161dc2f3deb824f894
--! Hash: sha1:f1fab6dd900faea5590953568528bca47b5eb4eb
--! Message: many messages a row of the inlet

-- The next migration: `--! include` lines, one for each changed file of fixtures/, in order (see docs/development.md).

-- A row of the inlet takes many messages now.
drop view staging.inbox;
drop function staging.receive_message();

--! Included tables/staging.inbox.sql
-- The way into staging.raw_messages: the loader COPYs here, and nothing can be read from here.
--
-- COPY FROM refuses a table with row-level security ("COPY FROM not supported with row-level security"), but not
-- a view with an INSTEAD OF trigger. The trigger is called once a row, so a row here takes many messages of a batch: in
-- each array the same position is the same message. That way the detour costs next to nothing (docs/performance.md).
create or replace view staging.inbox as
select
  m.batch_id,
  array[m.message_id] as message_ids,
  array[m.receipt_handle] as receipt_handles,
  array[m.sent_at] as sent_ats,
  array[m.receive_count] as receive_counts,
  array[m.body] as bodies
from staging.raw_messages m
where false;

comment on view staging.inbox is 'Write-only inlet for raw messages: COPY staging.inbox FROM STDIN (FORMAT binary)';
--! EndIncluded tables/staging.inbox.sql
--! Included functions/staging.receive_messages.sql
-- staging.receive_messages() -> trigger, and the trigger that fills staging.raw_messages
--
-- what:    puts the messages of a row copied into staging.inbox into the open slot of staging.raw_messages. With work_mem
--          well above what the loader sends at once, nothing in the clear spills to a temporary file.
-- called:  by COPY staging.inbox, as logins_loader; by staging.replay
-- reads:   staging.slots
-- writes:  staging.raw_messages
-- twice:   no: the same messages again are more rows; staging.submit_batch counts them
-- raises:  ML014 the arrays are not equally long, or something in the row is null
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
      message = 'a row of staging.inbox has arrays of one length, and nothing in it is null';
  end if;

  case (select s.current_slot from staging.slots s)
    when 0 then
      insert into staging.raw_messages_0 (batch_id, message_id, receipt_handle, sent_at, receive_count, body)
      select new.batch_id, m.*
      from unnest(new.message_ids, new.receipt_handles, new.sent_ats, new.receive_counts, new.bodies) m;
    when 1 then
      insert into staging.raw_messages_1 (batch_id, message_id, receipt_handle, sent_at, receive_count, body)
      select new.batch_id, m.*
      from unnest(new.message_ids, new.receipt_handles, new.sent_ats, new.receive_counts, new.bodies) m;
    else
      insert into staging.raw_messages_2 (batch_id, message_id, receipt_handle, sent_at, receive_count, body)
      select new.batch_id, m.*
      from unnest(new.message_ids, new.receipt_handles, new.sent_ats, new.receive_counts, new.bodies) m;
  end case;
  return new;
end
$$;

comment on function staging.receive_messages() is 'Puts the messages of a row copied into staging.inbox into staging.raw_messages';
revoke all on function staging.receive_messages() from public;

create or replace trigger receive_messages
instead of insert on staging.inbox
for each row execute function staging.receive_messages();
--! EndIncluded functions/staging.receive_messages.sql
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

  insert into staging.inbox (batch_id, message_ids, receipt_handles, sent_ats, receive_counts, bodies)
  select replay_batch_id, array[q.message_id], array[''], array[q.sent_at], array[0], array[b.body]
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
--! Included grants/tables.sql
-- Who may do what to tables and views. What is not here is for logins_owner alone; functions bring their own
-- grants. test/security/privileges.test.ts compares the catalogs with a complete list.
grant select on public.user_logins, public.user_logins_compat to logins_analyst;

grant insert on staging.inbox to logins_loader;
grant select on staging.batches, staging.totals to logins_auditor;

grant insert on masking.kek_inlet to logins_worker, logins_custodian;
grant insert on masking.next_kek_inlet to logins_custodian;
grant select on masking.rotations, masking.erasures, masking.retention_policy to logins_custodian, logins_auditor;

grant select on unmask.open_requests to logins_unmasker, logins_approver;
grant select on unmask.policy to logins_unmasker, logins_approver, logins_auditor;
grant select on unmask.requests, unmask.approvals, audit.events to logins_auditor;
--! EndIncluded grants/tables.sql
