-- What only a role with CREATE on the database can make: schemas, the extension, and the bookkeeping tables
-- of graphile-migrate and graphile-worker, so that logins_owner can do the rest without it.
--
-- Run by `npm run migrate` after 1-roles.sql. May be run again.

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
      message = format('the migrating login may not make schemas in database %I', database_name),
      hint = format(
        'Have the owner of the database run `grant create on database %I to MIGRATOR`, where MIGRATOR is the login in '
        'DATABASE_URL',
        database_name
      );
  end if;

  -- The functions of a trusted extension belong to the bootstrap superuser, so PUBLIC's EXECUTE on them cannot
  -- be revoked. What guards them is USAGE on their schema, and that works in a schema of their own only.
  select n.nspname
    into pgcrypto_schema
    from pg_catalog.pg_extension e
    join pg_catalog.pg_namespace n on n.oid = e.extnamespace
   where e.extname = 'pgcrypto';
  if pgcrypto_schema <> 'crypto' then
    raise exception using
      errcode = 'ML020',
      message = format(
        'pgcrypto is installed in schema %I, and masked-logins needs it in schema crypto, to guard it', pgcrypto_schema
      ),
      hint = format(
        'Have a superuser run `create schema if not exists crypto authorization logins_owner; alter extension pgcrypto '
        'set schema crypto`. Whoever calls its functions as %I.… has to be changed then; where that cannot be, give '
        'masked-logins a database of its own',
        pgcrypto_schema
      );
  end if;

  select n.nspowner::regrole::name into crypto_owner from pg_catalog.pg_namespace n where n.nspname = 'crypto';
  if crypto_owner <> 'logins_owner' then
    raise exception using
      errcode = 'ML020',
      message = format('schema crypto belongs to %I, and masked-logins needs it for itself, to guard pgcrypto', crypto_owner),
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

-- What Postgres gives PUBLIC by default, given by name: whoever hardens a database takes it from PUBLIC.
do $$
declare
  database_name constant name := current_database();
  group_name name;
begin
  -- A login connects by its membership.
  foreach group_name in array array[
    'logins_loader', 'logins_worker', 'logins_analyst', 'logins_unmasker', 'logins_approver', 'logins_custodian',
    'logins_auditor'
  ] loop
    if has_database_privilege(database_name, 'connect with grant option') then
      execute format('grant connect on database %I to %I', database_name, group_name);
    elsif not has_database_privilege(group_name, database_name, 'connect') then
      raise exception using
        errcode = 'ML024',
        message = format('%I may not connect to database %I, and the migrating login may not let it', group_name, database_name),
        hint = format(
          'Have the owner of the database run `grant connect on database %I to MIGRATOR with grant option`, where MIGRATOR '
          'is the login in DATABASE_URL',
          database_name
        );
    end if;
  end loop;

  -- user_logins lives in schema public.
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
      message = 'user_logins is to live in schema public, which logins_owner and logins_analyst may not use, and the migrating login may not let them',
      hint = 'Have the owner of the database run `grant usage, create on schema public to MIGRATOR with grant option`, '
        'where MIGRATOR is the login in DATABASE_URL';
  end if;

  if has_language_privilege('plpgsql', 'usage with grant option') and has_language_privilege('sql', 'usage with grant option') then
    grant usage on language sql, plpgsql to logins_owner;
  end if;
  if not has_language_privilege('logins_owner', 'plpgsql', 'usage') or not has_language_privilege('logins_owner', 'sql', 'usage') then
    raise exception using
      errcode = 'ML025',
      message = 'logins_owner may not use the languages sql and plpgsql, and the migrating login may not let it',
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
