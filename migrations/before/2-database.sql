-- Schemas, the extension, and the bookkeeping tables of graphile-migrate and graphile-worker, for which CREATE on the
-- database is needed. logins_owner creates everything else without it.
--
-- `migrate` runs this file after 1-roles.sql. It may be run again.

do $$
declare
  pgcrypto_schema name;
  crypto_owner name;
  database_name constant name := current_database();
  needs_schemas boolean;
begin
  select count(*) < 7
    into needs_schemas
    from pg_catalog.pg_namespace n
   where n.nspname in ('crypto', 'staging', 'masking', 'unmask', 'audit', 'graphile_worker', 'graphile_migrate');
  if needs_schemas and not has_database_privilege(database_name, 'create') then
    raise exception using
      errcode = 'ML024',
      message = format('the migrating login may not create schemas in database %I', database_name),
      hint = format(
        'Have the owner of the database run `grant create on database %I to MIGRATOR`, where MIGRATOR is the login in '
        'DATABASE_URL',
        database_name
      );
  end if;

  -- The functions of a trusted extension belong to the bootstrap superuser, so PUBLIC's EXECUTE on them cannot be
  -- revoked. USAGE on their schema protects them instead, so they need a schema of their own.
  select n.nspname
    into pgcrypto_schema
    from pg_catalog.pg_extension e
    join pg_catalog.pg_namespace n on n.oid = e.extnamespace
   where e.extname = 'pgcrypto';
  if pgcrypto_schema <> 'crypto' then
    raise exception using
      errcode = 'ML020',
      message = format(
        'pgcrypto is installed in schema %I, but must be in schema crypto, which protects it', pgcrypto_schema
      ),
      hint = format(
        'Have a superuser run `create schema if not exists crypto authorization logins_owner; alter extension pgcrypto '
        'set schema crypto`. Then change all other callers of %I.… in this database; if that is impossible, use another '
        'database for masked-logins',
        pgcrypto_schema
      );
  end if;

  select n.nspowner::regrole::name into crypto_owner from pg_catalog.pg_namespace n where n.nspname = 'crypto';
  if crypto_owner <> 'logins_owner' then
    raise exception using
      errcode = 'ML020',
      message = format('schema crypto belongs to %I, but must belong to logins_owner, to protect pgcrypto', crypto_owner),
      hint = format('Have a superuser, or %I, run `alter schema crypto owner to logins_owner`', crypto_owner);
  end if;
end
$$;

create schema if not exists crypto authorization logins_owner;
create schema if not exists staging authorization logins_owner;
create schema if not exists masking authorization logins_owner;
create schema if not exists unmask authorization logins_owner;
create schema if not exists audit authorization logins_owner;
create schema if not exists graphile_worker authorization logins_owner;
create schema if not exists graphile_migrate authorization logins_owner;

create extension if not exists pgcrypto schema crypto;

-- What PUBLIC has by default is granted by name, because hardened databases revoke it from PUBLIC.
do $$
declare
  database_name constant name := current_database();
  group_name name;
begin
  -- Logins may connect because they are members.
  foreach group_name in array array[
    'logins_loader', 'logins_worker', 'logins_analyst', 'logins_unmasker', 'logins_approver', 'logins_custodian',
    'logins_auditor'
  ] loop
    if has_database_privilege(database_name, 'connect with grant option') then
      execute format('grant connect on database %I to %I', database_name, group_name);
    elsif not has_database_privilege(group_name, database_name, 'connect') then
      raise exception using
        errcode = 'ML024',
        message = format('%I may not connect to database %I, and the migrating login may not grant that', group_name, database_name),
        hint = format(
          'Have the owner of the database run `grant connect on database %I to MIGRATOR with grant option`, where MIGRATOR '
          'is the login in DATABASE_URL',
          database_name
        );
    end if;
  end loop;

  -- user_logins is in schema public.
  if has_schema_privilege('public', 'usage with grant option') then
    grant usage on schema public to logins_owner, logins_analyst;
  end if;
  if has_schema_privilege('public', 'create with grant option') then
    grant create on schema public to logins_owner;
  end if;
  if not has_schema_privilege('logins_owner', 'public', 'create')
    or not has_schema_privilege('logins_owner', 'public', 'usage')
    or not has_schema_privilege('logins_analyst', 'public', 'usage')
  then
    raise exception using
      errcode = 'ML021',
      message = 'logins_owner and logins_analyst may not use schema public, where user_logins is, and the migrating login may not grant that',
      hint = 'Have the owner of the database run `grant usage, create on schema public to MIGRATOR with grant option`, '
        'where MIGRATOR is the login in DATABASE_URL';
  end if;

  if has_language_privilege('plpgsql', 'usage with grant option') and has_language_privilege('sql', 'usage with grant option') then
    grant usage on language sql, plpgsql to logins_owner;
  end if;
  if not has_language_privilege('logins_owner', 'plpgsql', 'usage') or not has_language_privilege('logins_owner', 'sql', 'usage') then
    raise exception using
      errcode = 'ML025',
      message = 'logins_owner may not use the languages sql and plpgsql, and the migrating login may not grant that',
      hint = 'Have a superuser run, in this database, `grant usage on language sql, plpgsql to MIGRATOR with grant option`, '
        'where MIGRATOR is the login in DATABASE_URL';
  end if;

  if not has_function_privilege('logins_owner', 'crypto.pgp_sym_encrypt_bytea(bytea, text, text)', 'execute') then
    raise exception using
      errcode = 'ML025',
      message = 'logins_owner may not call the functions of pgcrypto',
      hint = 'Have a superuser run, in this database, `grant execute on all functions in schema crypto to logins_owner`';
  end if;
end
$$;

set role logins_owner;

-- These tables are graphile-migrate's (`manageGraphileMigrateSchema` in .gmrc).
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

-- This table is graphile-worker's. If it exists, graphile-worker does not create its schema.
create table if not exists graphile_worker.migrations (
  id int primary key,
  ts timestamptz default now() not null,
  breaking boolean not null default false
);

reset role;
