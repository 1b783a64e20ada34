-- What a worker may do in graphile-worker's schema: use its tables and functions, and own none of them.
--
-- graphile-worker expects to be run by the owner of its tables. But functions of logins_owner add jobs, and triggers on
-- the tables they add them to run as logins_owner: whoever owned the tables could plant one there and read every key
-- (tried, and it worked). So logins_owner owns them, and a policy on each table lets logins_worker through its
-- row-level security.
--
-- Run by `npm run migrate` after graphile-worker's own migrations, as logins_owner. May be run again.

-- The library puts row-level security on its other tables.
alter table graphile_worker.migrations enable row level security;
-- A view reads with its owner's rights, past row-level security, unless it is told otherwise.
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
      -- Which of its migrations have run is for those who migrate to say.
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
