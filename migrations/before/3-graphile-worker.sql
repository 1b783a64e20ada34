-- Lets logins_worker use the tables and functions of graphile-worker without owning them.
--
-- graphile-worker expects to be run by the owner of its tables. But functions of logins_owner add jobs, and triggers on
-- the jobs table then run as logins_owner: an owner of the table could create a trigger that reads all keys (this was
-- tried, and worked). So logins_owner owns the tables, and a policy on each lets logins_worker pass row-level security.
--
-- `migrate` runs this file after graphile-worker's own migrations, as logins_owner. It may be run again.

-- The library enables row-level security on its other tables.
alter table graphile_worker.migrations enable row level security;
-- By default, a view reads with its owner's rights, and so bypasses row-level security.
alter view graphile_worker.jobs set (security_invoker = true);

do $$
declare
  queue_table regclass;
begin
  for queue_table in
    select c.oid from pg_catalog.pg_class c
     where c.relnamespace = 'graphile_worker'::regnamespace and c.relkind = 'r' and c.relrowsecurity
  loop
    if not exists (
      select from pg_catalog.pg_policy p where p.polrelid = queue_table and p.polname = 'logins_worker'
    ) then
      -- Only the migrating login records which migrations of the library have run.
      execute format(
        'create policy logins_worker on %s for %s to logins_worker using (true)',
        queue_table, case queue_table when 'graphile_worker.migrations'::regclass then 'select' else 'all' end
      );
    end if;
  end loop;
end
$$;

grant usage on schema graphile_worker to logins_worker;
grant select, insert, update, delete on all tables in schema graphile_worker to logins_worker;
revoke insert, update, delete on graphile_worker.migrations from logins_worker;
grant usage on all sequences in schema graphile_worker to logins_worker;
revoke execute on all functions in schema graphile_worker from public;
grant execute on all functions in schema graphile_worker to logins_worker;
