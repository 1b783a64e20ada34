-- The roles: groups that own objects or have privileges. They cannot log in. People and processes log in as members of
-- them (docs/operations.md).
--
-- Roles belong to the cluster, not to a database, so they are not in the migrations. `migrate` runs this file first, as a
-- superuser or a role with CREATEROLE. It may be run again.

do $$
declare
  role_name text;
  is_complete boolean;
begin
  select count(*) = 8
    into is_complete
    from pg_catalog.pg_roles r
   where r.rolname in (
     'logins_owner', 'logins_loader', 'logins_worker', 'logins_analyst', 'logins_unmasker', 'logins_approver',
     'logins_custodian', 'logins_auditor'
   );
  if not is_complete and not (select r.rolsuper or r.rolcreaterole from pg_catalog.pg_roles r where r.rolname = current_user) then
    raise exception using
      errcode = 'ML022',
      message = 'the roles logins_* do not exist, and the migrating login may not create roles',
      hint = 'Have a superuser run `alter role MIGRATOR createrole`, where MIGRATOR is the login in DATABASE_URL';
  end if;

  -- Since Postgres 16, a role with CREATEROLE gets only ADMIN on the roles that it creates. The migrations must also act
  -- as logins_owner.
  perform set_config('createrole_self_grant', 'set, inherit', true);

  foreach role_name in array array[
    'logins_owner',      -- owns all objects
    'logins_loader',     -- inserts raw messages, and can read nothing
    'logins_worker',     -- runs jobs and masks, but cannot read what is masked
    'logins_analyst',    -- reads user_logins
    'logins_unmasker',   -- requests and reveals values, which is audited
    'logins_approver',   -- approves the requests of others
    'logins_custodian',  -- manages the keys, and cannot reveal
    'logins_auditor'     -- reads the audit log
  ] loop
    if not exists (select from pg_catalog.pg_roles r where r.rolname = role_name) then
      execute format('create role %I nologin', role_name);
    end if;
  end loop;

  -- An unmasker may do what an analyst may.
  if not pg_has_role('logins_unmasker', 'logins_analyst', 'usage') then
    grant logins_analyst to logins_unmasker;
  end if;

  -- The roles belong to the cluster. The login that migrated its first database created them and may act as
  -- logins_owner. A login that migrates another database must be granted that.
  if not (pg_has_role(current_user, 'logins_owner', 'set') and pg_has_role(current_user, 'logins_owner', 'usage')) then
    raise exception using
      errcode = 'ML023',
      message = 'another login created the roles logins_*, and the migrating login may not act as logins_owner',
      hint = 'Have a superuser, or that other login, run `grant logins_owner to MIGRATOR with inherit true, set true`, '
        'where MIGRATOR is the login in DATABASE_URL';
  end if;
end
$$;
