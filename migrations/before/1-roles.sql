-- The cluster's roles: groups that own things or may do things. Nobody logs in as one of them; people and
-- processes log in as members (docs/operations.md shows how).
--
-- Roles belong to the cluster and not to a database, so they live outside the migrations. Run by
-- `npm run migrate` before everything else, by a superuser or by a role with CREATEROLE. May be run again.

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
      message = 'the roles logins_* are to be made, and the migrating login may not make roles',
      hint = 'Have a superuser run `alter role MIGRATOR createrole`, where MIGRATOR is the login in DATABASE_URL';
  end if;

  -- Since Postgres 16 whoever has CREATEROLE gets no more than ADMIN on the roles it makes; the migrations
  -- must also act as logins_owner.
  perform set_config('createrole_self_grant', 'set, inherit', true);

  foreach role_name in array array[
    'logins_owner',      -- owns every object
    'logins_loader',     -- puts raw messages in, and can read nothing
    'logins_worker',     -- runs jobs, and the masking it cannot look into
    'logins_analyst',    -- reads user_logins
    'logins_unmasker',   -- requests and reveals values, on the record
    'logins_approver',   -- approves what others request
    'logins_custodian',  -- holds the keys, and cannot reveal
    'logins_auditor'     -- reads the record
  ] loop
    if not exists (select from pg_catalog.pg_roles r where r.rolname = role_name) then
      execute format('create role %I nologin', role_name);
    end if;
  end loop;

  -- An unmasker may do what an analyst may.
  if not pg_has_role('logins_unmasker', 'logins_analyst', 'usage') then
    grant logins_analyst to logins_unmasker;
  end if;

  -- The roles are the cluster's. Whoever migrated its first database made them and may act as logins_owner; whoever
  -- migrates another one has to be let in.
  if not (pg_has_role(current_user, 'logins_owner', 'set') and pg_has_role(current_user, 'logins_owner', 'usage')) then
    raise exception using
      errcode = 'ML023',
      message = 'another login made the roles logins_*, and the migrating one may not act as logins_owner',
      hint = 'Have a superuser, or that other login, run `grant logins_owner to MIGRATOR with inherit true, set true`, '
        'where MIGRATOR is the login in DATABASE_URL';
  end if;
end
$$;
