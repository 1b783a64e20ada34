-- Makes the login that migrates: no superuser, and not the owner of the database.
--
-- Run by the postgres image when it makes a new cluster, as its superuser, in the database POSTGRES_DB. On a server of
-- your own, run it once by psql, in the database that is to hold the logins, with MIGRATOR_PASSWORD set.

\set ON_ERROR_STOP on
\getenv migrator_password MIGRATOR_PASSWORD

create role app_migrator login createrole password :'migrator_password';

-- Schemas and the extension pgcrypto, which is a trusted one, need CREATE on the database.
select format('grant create on database %I to app_migrator', current_database()) \gexec

-- The migrations pass these rights on to the roles logins_* by name, so that PUBLIC's may be revoked. user_logins lives
-- in schema public.
select format('grant connect on database %I to app_migrator with grant option', current_database()) \gexec
grant usage, create on schema public to app_migrator with grant option;
