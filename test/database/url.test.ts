import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import pg from 'pg';
import { afterAll, describe, expect, test } from 'vitest';
import { readSettings } from '../../src/config.ts';
import { databaseAt } from '../../src/database/url.ts';
import { SettingError } from '../../src/errors.ts';

const directory = mkdtempSync(path.join(tmpdir(), 'masked-logins-'));
const certificate = path.join(directory, 'ca.crt');
writeFileSync(certificate, 'no certificate');
afterAll(() => rmSync(directory, { recursive: true }));

/** The parameters with which the driver connects. */
function connectionOf(url: string): Record<string, unknown> {
  const { host, port, user, password, database, ssl } = new pg.Client({
    connectionString: databaseAt(url).url,
  });
  return { host, port, user, password, database, ssl };
}

describe('only host, port and database are displayed', () => {
  test.each([
    ['postgres://u:p@db.example/logins', 'db.example:5432/logins'],
    ['postgresql://u:p@db.example:6432/logins?sslmode=verify-full', 'db.example:6432/logins'],
    ['POSTGRES://u:p@db.example/logins', 'db.example:5432/logins'],
    ['postgres://u:p@[::1]:5433/logins', '[::1]:5433/logins'],
    ['postgres://u:p@/logins?host=/run/pg', '/run/pg:5432/logins'],
    ['postgres://u:p@/logins?host=/run/pg&port=5433', '/run/pg:5433/logins'],
    ['postgres://u:p@:5433/logins?host=/run/pg', '/run/pg:5433/logins'],
    ['postgres:///logins?host=/run/pg&user=u&password=p', '/run/pg:5432/logins'],
    ['postgres://u:p@%2Frun%2Fpg/logins', '/run/pg:5432/logins'],
    ['postgres://u:p%40%2F%3F%23%25%20w@db.example/my%20logins', 'db.example:5432/my logins'],
    ['postgres://u:a:b@db.example/logins', 'db.example:5432/logins'],
  ])('%s', (url, display) => {
    expect(databaseAt(url).display).toBe(display);
  });
});

describe('the driver gets the same parameters as libpq', () => {
  test.each([
    ['postgres://u:p%40%2F%3F%23%25%20w@h/d', { user: 'u', password: 'p@/?#% w', host: 'h', database: 'd' }],
    ['postgres://u:a:b@h/d', { user: 'u', password: 'a:b' }],
    ['postgres://u%40org:p@h/d', { user: 'u@org', password: 'p' }],
    ['postgres://u:pü@h/d', { password: 'pü' }],
    ['postgres://u:p+w@h/d', { password: 'p+w' }],
    ['postgres://u:p@/d?host=/run/pg', { user: 'u', password: 'p', host: '/run/pg', port: 5432 }],
    ['postgres://u:p@:5433/d?host=/run/pg', { host: '/run/pg', port: 5433 }],
    ['postgres:///d?host=/run/pg&user=u&password=p%26q', { user: 'u', password: 'p&q', host: '/run/pg' }],
    ['postgres://u:p@h/d?sslmode=disable', { ssl: false }],
    ['postgres://u:p@h/d?sslmode=no-verify', { ssl: { rejectUnauthorized: false } }],
    ['postgres://u:p@h/d?sslmode=require', { ssl: {} }],
    ['postgres://u:p@h/d?sslmode=verify-full', { ssl: {} }],
    ['postgres://u:p@h/d?sslrootcert=system', { ssl: {} }],
    [`postgres://u:p@h/d?sslrootcert=${certificate}`, { ssl: { ca: 'no certificate' } }],
    ['postgres://u:p@h/d?sslmode=require&uselibpqcompat=true', { ssl: { rejectUnauthorized: false } }],
  ])('%s', (url, expected) => {
    expect(connectionOf(url)).toMatchObject(expected);
  });

  test('options and application_name are not changed', () => {
    const { connectionParameters } = new pg.Client({
      connectionString: databaseAt(
        'postgres://u:p@h/d?options=endpoint%3Dep-1%20-c%20x.y%3D1&application_name=a+b',
      ).url,
    }) as unknown as { connectionParameters: Record<string, unknown> };
    expect(connectionParameters).toMatchObject({
      options: 'endpoint=ep-1 -c x.y=1',
      application_name: 'a b',
    });
  });
});

function refusalOf(url: string): string {
  try {
    readSettings({ DATABASE_URL: url });
    return 'not refused';
  } catch (error) {
    if (error instanceof SettingError) return error.message;
    throw error;
  }
}

describe('an invalid or ambiguous URL is refused, and no part of it is quoted', () => {
  test.each([
    'mysql://usr:hunter2@host.secret/d',
    'hunter2',
    'postgres:usr:hunter2@host.secret/d',
    'postgres://usr:12#hunter2@host.secret/d',
    'postgres://usr:12/hunter2@host.secret/d',
    'postgres://usr:12?hunter2@host.secret/d',
    'postgres://usr:hunter2@12@host.secret/d',
    'postgres://usr:hunter2%@host.secret/d',
    'postgres://usr:hunter2%zz@host.secret/d',
    'postgres://usr:hunter2%ff@host.secret/d',
    'postgres://usr:hunter2%00@host.secret/d',
    'postgres://usr:hunter2 x@host.secret/d',
    'postgres://usr:hunter2\n@host.secret/d',
    'postgres://usr:hunter2/d',
    'postgres://usr:hunter2@host.secret:port/d',
    'postgres://usr:hunter2@host.secret:70000/d',
    'postgres://usr:hunter2@host.secret,host2.secret/d',
    'postgres://usr:hunter2@/d?host=/run/secret,/run/secret2',
    'postgres://usr:hunter2@host.secret',
    'postgres://usr:hunter2@host.secret/',
    'postgres://usr:hunter2@host.secret/d%23hunter2',
    'postgres://usr:hunter2@host.secret/d%0Ahunter2',
    'postgres://usr:hunter2@host.secret/d?sslmode=hunter2',
    'postgres://usr:hunter2@host.secret/d?sslnegotiation=hunter2',
    'postgres://usr:hunter2@host.secret/d?sslmode=verify-ca&uselibpqcompat=true',
    'postgres://usr:hunter2@host secret/d',
    'postgres://usr:hunter2@host.secret]/d',
  ])('%j', (url) => {
    const message = refusalOf(url);
    expect(message).toMatch(/^DATABASE_URL [^\n]+$/);
    expect(message).not.toMatch(/hunter2|secret|usr/);
  });
});

test.each(['sslrootcert', 'sslcert', 'sslkey'])(
  'the error for a missing file names its parameter, %s, and not its path',
  (name) => {
    const read = () =>
      readSettings({
        DATABASE_URL: `postgres://u:p@h/d?${name}=/no/such.crt`,
      });
    expect(read).toThrow(SettingError);
    expect(read).toThrow(new RegExp(`DATABASE_URL.*${name}`));
    // The path is part of the URL. Only host, port and database may be displayed.
    expect(read).not.toThrow(/no\/such/);
  },
);
