-- Creates the migrating login. It is neither a superuser nor the owner of the database.
--
-- The postgres image runs this as superuser in the database POSTGRES_DB, when it initializes a new cluster. On your own
-- server, run it once with psql as superuser, in the database for the logins, with MIGRATOR_PASSWORD set.

\set ON_ERROR_STOP on
\getenv migrator_password MIGRATOR_PASSWORD

create role app_migrator login createrole password :'migrator_password';

-- Creating schemas and the trusted extension pgcrypto requires CREATE on the database.
select format('grant create on database %I to app_migrator', current_database()) \gexec

-- The migrations grant these privileges to the roles logins_*, so that they can be revoked from PUBLIC. The table
-- user_logins is in schema public.
select format('grant connect on database %I to app_migrator with grant option', current_database()) \gexec
grant usage, create on schema public to app_migrator with grant option;
