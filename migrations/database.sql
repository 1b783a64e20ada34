-- What only a role with CREATE on the database can make: schemas, the extension, and the bookkeeping tables
-- of graphile-migrate and graphile-worker, so that logins_owner can do the rest without it.
--
-- Run by `npm run migrate` after roles.sql. May be run again.

create schema if not exists crypto authorization logins_owner;
create schema if not exists staging authorization logins_owner;
create schema if not exists masking authorization logins_owner;
create schema if not exists unmask authorization logins_owner;
create schema if not exists audit authorization logins_owner;
create schema if not exists graphile_worker authorization logins_owner;
create schema if not exists graphile_migrate authorization logins_owner;

create extension if not exists pgcrypto schema crypto;

do $$
declare
  pgcrypto_schema text;
begin
  -- The functions of a trusted extension belong to the bootstrap superuser, so PUBLIC's EXECUTE on them cannot
  -- be revoked. What guards them is USAGE on their schema, and that works in a schema of their own only.
  select e.extnamespace::regnamespace::text
    into pgcrypto_schema
    from pg_catalog.pg_extension e
   where e.extname = 'pgcrypto';
  if pgcrypto_schema <> 'crypto' then
    raise exception using
      errcode = 'ML020',
      message = format('pgcrypto is installed in schema %s and masked-logins needs it in schema crypto', pgcrypto_schema),
      hint = 'Move it with: alter extension pgcrypto set schema crypto';
  end if;

  if not has_schema_privilege('logins_owner', 'public', 'create') then
    begin
      grant create on schema public to logins_owner;
    exception when insufficient_privilege then
      raise exception using
        errcode = 'ML021',
        message = 'user_logins is to live in schema public, where neither logins_owner nor you may create tables',
        hint = 'Migrate as the owner of the database, or have it run: grant create on schema public to logins_owner';
    end;
    if not has_schema_privilege('logins_owner', 'public', 'create') then
      raise exception using
        errcode = 'ML021',
        message = 'user_logins is to live in schema public, where neither logins_owner nor you may create tables',
        hint = 'Migrate as the owner of the database, or have it run: grant create on schema public to logins_owner';
    end if;
  end if;
end
$$;

set role logins_owner;

-- The shapes are graphile-migrate's own (`manageGraphileMigrateSchema` in .gmrc).
create table if not exists graphile_migrate.migrations (
  hash text primary key,
  previous_hash text references graphile_migrate.migrations,
  filename text not null,
  date timestamptz not null default now()
);
create table if not exists graphile_migrate.current (
  filename text primary key default 'current.sql',
  content text not null,
  date timestamptz not null default now()
);
-- See fixtures/grants/row_security.sql.
alter table graphile_migrate.migrations enable row level security;
alter table graphile_migrate.current enable row level security;

-- The shape is graphile-worker's own: where this table exists, it makes no schema.
create table if not exists graphile_worker.migrations (
  id int primary key,
  ts timestamptz default now() not null,
  breaking boolean not null default false
);

reset role;
