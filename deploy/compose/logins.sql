-- Creates logins for the loader, for the worker and for an analyst. Each is a member of its group role only.
--
-- Run this with psql as the migrating login, after migrating, with the passwords in the environment. It may be run
-- again, and then sets the passwords again.
--
-- A server that logs DDL (log_statement) logs these passwords. To avoid this, omit the three `alter role` lines, and
-- set the passwords with psql's \password, which sends a hash (docs/operations.md).

\set ON_ERROR_STOP on
\getenv loader_password LOADER_PASSWORD
\getenv worker_password WORKER_PASSWORD
\getenv analyst_password ANALYST_PASSWORD

select format('create role %I login', login)
  from unnest(array['app_loader', 'app_worker', 'app_analyst']) login
 where not exists (select from pg_catalog.pg_roles where rolname = login)
\gexec

alter role app_loader password :'loader_password';
alter role app_worker password :'worker_password';
alter role app_analyst password :'analyst_password';

grant logins_loader to app_loader;
grant logins_worker to app_worker;
grant logins_analyst to app_analyst;
