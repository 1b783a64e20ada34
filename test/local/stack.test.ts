import { existsSync, readFileSync, statSync } from 'node:fs';
import path from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { readStackFile } from '../../local/stack/state.ts';
import type { StackLogin } from '../../local/stack/logins.ts';
import { startStack, type Stack } from '../../local/stack/stack.ts';
import { createLogger } from '../../src/log.ts';
import { makeTestDirectory, removeTestDirectory } from '../support/test-directory.ts';

const log = createLogger('silent');
const places = [makeTestDirectory(), makeTestDirectory()] as const;
let stack: Stack;
let neighbour: Stack;

beforeAll(async () => {
  [stack, neighbour] = await Promise.all([
    startStack({ localDir: places[0], log }),
    startStack({ localDir: places[1], log }),
  ]);
});

afterAll(async () => {
  await Promise.all([stack.stop(), neighbour.stop()]);
  await Promise.all(places.map(removeTestDirectory));
});

async function query(url: string, sql: string): Promise<unknown[]> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    return (await client.query(sql)).rows;
  } finally {
    await client.end();
  }
}

describe('a local stack', () => {
  test('runs beside another one, on ports and in directories of its own', async () => {
    expect(stack.postgres.port).not.toBe(neighbour.postgres.port);
    expect(stack.emulator.port).not.toBe(neighbour.emulator.port);
    expect(stack.file.dataDirectory).not.toBe(neighbour.file.dataDirectory);
    for (const { file } of [stack, neighbour]) {
      const [row] = await query(file.urls.superuser, `select current_setting('data_directory') as directory`);
      expect(row).toEqual({ directory: file.dataDirectory });
    }
  });

  test('has a login for each role, a member of that role and of nothing else', async () => {
    const roles: StackLogin[] = [
      'loader',
      'worker',
      'analyst',
      'unmasker',
      'approver',
      'custodian',
      'auditor',
    ];
    for (const role of roles) {
      const rows = await query(
        stack.file.urls[role],
        `select m.roleid::regrole::text as role from pg_auth_members m
          where m.member = (select oid from pg_roles where rolname = current_user)`,
      );
      expect(rows).toEqual([{ role: `logins_${role}` }]);
    }
  });

  test('is migrated by a login that is no superuser and does not own the database', async () => {
    const [row] = await query(
      stack.file.urls.owner,
      `select r.rolsuper as superuser, d.datdba = r.oid as owns from pg_roles r, pg_database d
        where r.rolname = current_user and d.datname = current_database()`,
    );
    expect(row).toEqual({ superuser: false, owns: false });
  });

  test('lets only its owner read what is secret', () => {
    for (const name of ['stack.json', 'state.json', 'kek', 'postgres.log']) {
      expect([name, statSync(path.join(places[0], name)).mode & 0o777]).toEqual([name, 0o600]);
    }
    expect(statSync(path.join(places[0], 'queue')).mode & 0o777).toBe(0o700);
    expect(readFileSync(stack.file.kekFile, 'utf8')).toMatch(/^[0-9a-f]{64}\n$/);
  });

  test('writes no password to the server log', () => {
    const written = readFileSync(stack.file.postgresLog, 'utf8');
    for (const url of Object.values(stack.file.urls)) expect(written).not.toContain(new URL(url).password);
  });

  test('refuses a second one in its directory, and is not harmed by it', async () => {
    await expect(startStack({ localDir: places[0], log })).rejects.toMatchObject({ name: 'SettingError' });
    expect(readStackFile(places[0])).toEqual(stack.file);
    expect(await query(stack.file.urls.loader, 'select 1 as one')).toEqual([{ one: 1 }]);
  });

  test('comes back with the same addresses, passwords, key and data, and starts over when asked to', async () => {
    await query(stack.file.urls.superuser, 'create table kept as select 42 as answer');
    const { file } = stack;
    const kek = readFileSync(file.kekFile, 'utf8');
    await stack.stop();
    expect(existsSync(path.join(places[0], 'stack.json'))).toBe(false);

    stack = await startStack({ localDir: places[0], log });
    expect(stack.file).toEqual(file);
    expect(readFileSync(file.kekFile, 'utf8')).toBe(kek);
    expect(await query(file.urls.superuser, 'select answer from kept')).toEqual([{ answer: 42 }]);
    await stack.stop();

    stack = await startStack({ localDir: places[0], fresh: true, log });
    expect(readFileSync(stack.file.kekFile, 'utf8')).not.toBe(kek);
    await expect(query(stack.file.urls.superuser, 'select answer from kept')).rejects.toMatchObject({
      code: '42P01',
    });
  });
});
