import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { withClient } from '../postgres/client.ts';

/** The database of a local stack. */
export const DATABASE = 'masked_logins';

/** Each of these logins is a member of the group role of the same name, and of nothing else. */
const MEMBERS = ['loader', 'worker', 'analyst', 'unmasker', 'approver', 'custodian', 'auditor'] as const;

type Member = (typeof MEMBERS)[number];

/** The logins of a stack. `stack.json` contains their connection strings under `urls`. */
export type StackLogin = 'superuser' | 'owner' | Member;
export type Passwords = Record<Exclude<StackLogin, 'superuser'>, string>;

/** 24 random bytes in hexadecimal, which need no quoting anywhere. */
export function randomPassword(): string {
  return randomBytes(24).toString('hex');
}

/** New passwords for all logins but the superuser's. */
export function randomPasswords(): Passwords {
  const names = ['owner', ...MEMBERS] as const;
  return Object.fromEntries(names.map((name) => [name, randomPassword()])) as Passwords;
}

/** The login's name in Postgres: `local_loader` is a member of `logins_loader`. */
export function loginName(name: keyof Passwords): string {
  return `local_${name}`;
}

/**
 * Creates the database and the login that migrates it. As on managed Postgres, that login is not a superuser and does
 * not own the database. So each start of a local stack shows that the installation needs neither.
 *
 * @param url returns the superuser's connection string for a database
 */
export async function prepareDatabase(
  url: (database: string) => string,
  passwords: Passwords,
): Promise<void> {
  const owner = loginName('owner');
  await withSilentClient(url('postgres'), async (client) => {
    await ensureLogin(client, owner, passwords.owner, 'createrole');
    const { rowCount } = await client.query('select from pg_database where datname = $1', [DATABASE]);
    if (rowCount === 0) await client.query(`create database ${DATABASE}`);
    await client.query(`grant create on database ${DATABASE} to ${owner}`);
    await client.query(`grant connect on database ${DATABASE} to ${owner} with grant option`);
  });
  await withSilentClient(url(DATABASE), async (client) => {
    // user_logins is in schema public, where the migrations let logins_owner create tables.
    await client.query(`grant usage, create on schema public to ${owner} with grant option`);
  });
}

/** Creates a login for each group role. The database is migrated, so the group roles exist. */
export async function createMemberLogins(
  url: (database: string) => string,
  passwords: Passwords,
): Promise<void> {
  await withSilentClient(url(DATABASE), async (client) => {
    for (const name of MEMBERS) {
      await ensureLogin(client, loginName(name), passwords[name], 'inherit');
      await client.query(`grant ${groupOf(name)} to ${loginName(name)}`);
    }
  });
}

function groupOf(name: Member): string {
  return `logins_${name}`;
}

async function ensureLogin(
  client: pg.Client,
  name: string,
  password: string,
  attribute: string,
): Promise<void> {
  const { rowCount } = await client.query('select from pg_roles where rolname = $1', [name]);
  const verb = rowCount === 0 ? 'create' : 'alter';
  await client.query(`${verb} role ${name} login ${attribute} password ${pg.escapeLiteral(password)}`);
}

/** A connection for statements that contain passwords. They do not reach the server's log, even if they fail. */
async function withSilentClient(
  connectionString: string,
  use: (client: pg.Client) => Promise<void>,
): Promise<void> {
  await withClient(connectionString, async (client) => {
    await client.query(
      `set log_statement = 'none'; set log_min_error_statement = 'panic'; set log_min_duration_statement = -1`,
    );
    await use(client);
  });
}
