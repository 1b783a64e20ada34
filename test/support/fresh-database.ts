import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { inject } from 'vitest';
import { loginName } from '../../local/stack/logins.ts';

/** An empty database, and a login that can migrate it: neither a superuser nor the database's owner. */
export interface FreshDatabase {
  name: string;
  superuser: pg.Pool;
  migratorUrl: string;
  drop(): Promise<void>;
}

/** @param options options of `create database`, such as a locale */
export async function createFreshDatabase(options = ''): Promise<FreshDatabase> {
  const name = `fresh_${randomBytes(6).toString('hex')}`;
  const migrator = loginName('owner');
  const url = new URL(inject('superuserUrl'));
  const admin = new pg.Pool({ connectionString: url.toString(), max: 1 });
  await admin.query(`create database ${name} template template0 ${options}`);
  await admin.query(`grant create on database ${name} to ${migrator}`);
  url.pathname = `/${name}`;
  const superuser = new pg.Pool({ connectionString: url.toString(), max: 2 });
  // Dropping the database by force ends idle connections.
  superuser.on('error', () => {});
  await superuser.query(`grant create on schema public to ${migrator} with grant option`);
  url.username = migrator;
  url.password = inject('passwords').owner;
  return {
    name,
    superuser,
    migratorUrl: url.toString(),
    async drop() {
      await superuser.end();
      // Without force: graphile-migrate keeps its connections open for a moment, and ends the process if one breaks.
      // Postgres waits some seconds for them to close.
      await admin.query(`drop database if exists ${name}`);
      await admin.end();
    },
  };
}
