import { SQSClient } from '@aws-sdk/client-sqs';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { Logger } from '../../src/log.ts';
import type { WorkContext } from '../../src/work/task.ts';
import { takeSteps } from '../../src/work/steps.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { load, rotate, sharedLogins, type Login } from '../support/keys.ts';
import { maskAll, message } from '../support/staging.ts';

interface Line {
  level: 'info' | 'warn';
  rows: number;
  total?: number;
  seconds: number;
  text: string;
}

let db: TestDatabase;
let sent: Map<string, Login>;
let lines: Line[];
beforeEach(async () => {
  db = await createTestDatabase();
  sent = await load(db, sharedLogins(60));
  lines = [];
});
afterEach(() => db.drop());

const custodian = (sql: string) => db.pool('custodian').query(sql);
const note =
  (level: Line['level']) =>
  (figures: Omit<Line, 'level' | 'text'>, text: string): void =>
    void lines.push({ level, ...figures, text });
function runSteps(step: Parameters<typeof takeSteps>[1], turnMs?: number): Promise<void> {
  const log = { info: note('info'), warn: note('warn') } as unknown as Logger;
  const context = { pool: db.pool('worker'), sqs: new SQSClient(), queue: {}, kek: undefined, log };
  return takeSteps(context as WorkContext, step, undefined, turnMs);
}

test('the worker logs the start and the end of a rotation, with rows, total and seconds', async () => {
  await rotate(db, 'token', 'ip');
  await runSteps('masking.rotate_step');
  const { rows } = await db.superuser.query(
    'select rows_total::int as total, rows_done::int as done from masking.rotations',
  );
  expect(rows).toEqual([{ total: rows[0].done, done: rows[0].total }]);
  expect(lines).toHaveLength(2);
  expect(lines[0]).toMatchObject({ level: 'info', total: rows[0].total });
  expect(lines[1]).toMatchObject({ level: 'info', total: rows[0].total, rows: rows[0].total });
  expect(lines.every(({ seconds }) => Number.isInteger(seconds))).toBe(true);
});

test('a rotation without rows also logs its start and its end', async () => {
  await rotate(db, 'cipher', 'body');
  await runSteps('masking.rotate_step');
  expect(lines).toMatchObject([
    { rows: 0, total: 0 },
    { rows: 0, total: 0 },
  ]);
});

test('a turn that ends before the work is complete logs the progress', async () => {
  await rotate(db, 'token', 'ip');
  await runSteps('masking.rotate_step', 5);
  expect(lines).toHaveLength(2);
  expect(lines[1]!.rows).toBeGreaterThan(0);
  expect(lines[1]!.total).toBeGreaterThan(lines[1]!.rows);
});

test('a rotation that pauses itself is logged as a warning', async () => {
  await db.superuser.query('update masking.vault set ciphertext = substr(ciphertext, 1, 20)');
  await rotate(db, 'token', 'ip');
  await runSteps('masking.rotate_step');
  expect(lines).toMatchObject([
    { level: 'info', rows: 0 },
    { level: 'warn', rows: 0 },
  ]);
});

test('an erasure and a purge log their start and end, and a step without work logs nothing', async () => {
  for (const step of ['masking.rotate_step', 'masking.erase_step', 'masking.purge_step'] as const) {
    await runSteps(step);
  }
  expect(lines).toEqual([]);
  await maskAll(db, [message(JSON.stringify({ user_id: 'user-1', ip: 7 }))]);
  await custodian(`select masking.erase_user('user-1', 'DSR-1')`);
  await runSteps('masking.erase_step');
  const theirs = [...sent.values()].filter(({ user }) => user === 'user-1').length;
  expect(lines).toHaveLength(2);
  expect(lines[1]!.rows).toBe(theirs + 1);
  expect('total' in lines[1]!).toBe(false);
  await db.superuser.query(
    `update masking.retention_policy set purge_position = '00000000-0000-0000-0000-000000000000'`,
  );
  const { rows } = await db.superuser.query('select count(*)::int as entries from masking.vault');
  await runSteps('masking.purge_step');
  expect(lines).toHaveLength(4);
  expect(lines[3]!.rows).toBe(rows[0].entries);
});

test('no log line contains a user, a value or a token', async () => {
  const { rows } = await db.superuser.query('select masked_ip, masked_device_id from public.user_logins');
  await rotate(db);
  await custodian(`select masking.erase_user('user-1', 'DSR-1')`);
  await runSteps('masking.rotate_step');
  await runSteps('masking.erase_step');
  const text = JSON.stringify(lines);
  const secrets = [
    ...[...sent.values()].flatMap(({ user, ip, device }) => [user, ip, device]),
    ...rows.flatMap(({ masked_ip: ip, masked_device_id: device }) => [ip, device]),
  ].filter((value) => value !== null);
  expect(secrets.length).toBeGreaterThan(100);
  expect(secrets.filter((value) => text.includes(value))).toEqual([]);
});
