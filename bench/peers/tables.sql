-- The tables of the contenders that mask in Node. They are like user_logins, with masked values as text, and with the
-- same key and indexes. They are not partitioned, which makes them faster.
create schema bench;

create table bench.batched (
  user_id text not null,
  create_date timestamptz not null,
  message_id uuid not null,
  device_type text,
  masked_ip text,
  masked_device_id text,
  locale text,
  app_version text,
  loaded_at timestamptz not null default now(),
  primary key (user_id, create_date, message_id)
);

create index on bench.batched (masked_ip);
create index on bench.batched (masked_device_id);

create table bench.row_by_row (like bench.batched including all);
