-- Makes a login for the loader, one for the worker and one for an analyst, each a member of its role and of no other.
--
-- Run by psql as the login that migrated, after `npm run migrate`, with the passwords in the environment. May be run
-- again: it then sets the passwords anew.
--
-- A server that logs DDL (log_statement) logs these passwords. Where that matters, leave the three `alter role` lines
-- out and set the passwords by psql's \password, which sends a hash (docs/operations.md).

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
