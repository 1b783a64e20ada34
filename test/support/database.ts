import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { inject } from 'vitest';
import type { StackLogin } from '../../local/stack/logins.ts';
import { unseal } from '../../src/database/kek.ts';
import { createPool } from '../../src/database/pool.ts';
import { DATABASE, loginName } from '../../local/stack/logins.ts';

/** A migrated database for one test file. */
export interface TestDatabase {
  name: string;
  urls: Record<StackLogin, string>;
  superuser: pg.Pool;
  kek: Buffer;
  /** The pool of a login. `drop` ends it. */
  pool(login: StackLogin): pg.Pool;
  /** Ends all pools and drops the database. */
  drop(): Promise<void>;
}

/**
 * Copies the migrated database.
 *
 * @param options.sealed leaves the database sealed; otherwise it is unsealed with a random key
 */
export async function createTestDatabase(options: { sealed?: boolean } = {}): Promise<TestDatabase> {
  const name = `test_${randomBytes(6).toString('hex')}`;
  const admin = new pg.Client({ connectionString: inject('superuserUrl') });
  await admin.connect();
  // A template cannot be copied twice at the same time.
  await admin.query('select pg_advisory_lock(1)');
  await admin.query(`create database ${name} template ${DATABASE}`);
  await admin.end();
  const database = databaseNamed(name);
  if (options.sealed !== true) await unseal(database.pool('worker'), database.kek);
  return database;
}

/** An existing migrated database, with the logins of the cluster. */
export function databaseNamed(name: string): TestDatabase {
  const urls = urlsOf(name);
  const pools = new Map<StackLogin, pg.Pool>();
  const pool = (login: StackLogin): pg.Pool => {
    const known = pools.get(login) ?? createPool(urls[login], { max: 8, applicationName: `test ${login}` });
    pools.set(login, known);
    return known;
  };
  return {
    name,
    urls,
    kek: randomBytes(32),
    superuser: pool('superuser'),
    pool,
    async drop() {
      await Promise.all([...pools.values()].map((each) => each.end()));
      const last = new pg.Client({ connectionString: inject('superuserUrl') });
      await last.connect();
      await last.query(`drop database if exists ${name} with (force)`);
      await last.end();
    },
  };
}

function urlsOf(database: string): Record<StackLogin, string> {
  const superuser = new URL(inject('superuserUrl'));
  superuser.pathname = `/${database}`;
  const members = Object.entries(inject('passwords')).map(([name, password]) => {
    const url = new URL(superuser);
    url.username = loginName(name as Exclude<StackLogin, 'superuser'>);
    url.password = password;
    return [name, url.toString()];
  });
  return { superuser: superuser.toString(), ...Object.fromEntries(members) } as Record<StackLogin, string>;
}
