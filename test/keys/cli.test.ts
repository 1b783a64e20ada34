import { randomBytes } from 'node:crypto';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { fingerprintOf } from '../../src/database/kek.ts';
import { events } from '../support/bodies.ts';
import { holds } from '../support/forms.ts';
import { startPipeline, until, type Pipeline } from '../support/pipeline.ts';

let pipeline: Pipeline;
let output = '';
beforeAll(async () => {
  pipeline = await startPipeline();
  await pipeline.send(events(60));
  await pipeline.run('load', [], { SQS_WAIT_TIME_SECONDS: '1' }).ended;
  await work();
});
afterAll(() => pipeline.stop());

/** Runs a command. Returns its output and its exit code. */
async function run(
  command: string,
  args: string[],
  variables: Record<string, string> = {},
): Promise<{ code: number | string; printed: string }> {
  const run = pipeline.run(command, args, variables);
  const code = await run.ended;
  if (command === 'keys') output += run.output();
  return { code, printed: run.output() };
}
const keys = (args: string[], variables: Record<string, string> = {}) => run('keys', args, variables);

/** Runs a worker until no work is left. Returns what it logged. */
async function work(): Promise<{ msg: string; rows?: number; total?: number }[]> {
  const worker = pipeline.run('worker');
  await until(async () => (await pending()) === 0);
  worker.process.kill('SIGTERM');
  expect(await worker.ended).toBe(0);
  const lines = worker.output().trim().split('\n');
  return lines.filter((line) => line.startsWith('{')).map((line) => JSON.parse(line));
}
const pending = async (): Promise<number> =>
  Number(
    (
      await pipeline.superuser.query(
        `select (select count(*) from staging.batches where acked_at is null)
              + (select count(*) from masking.rotations where state = 'running') as pending`,
      )
    ).rows[0].pending,
  );
const states = async () =>
  (
    await pipeline.superuser.query(
      `select purpose || ' ' || version as key, state from masking.keys order by purpose, version`,
    )
  ).rows.map(({ key, state }) => `${key} ${state}`);
const rotationStates = async () =>
  (await pipeline.superuser.query('select state from masking.rotations order by rotation_id')).rows.map(
    ({ state }) => state,
  );
const sealed = async () =>
  (await pipeline.superuser.query('select masking.is_sealed() as sealed')).rows[0].sealed;

test('list shows every key with its state', async () => {
  const { code, printed } = await keys(['list']);
  expect(code).toBe(0);
  expect(printed.match(/active/g)).toHaveLength(5);
  for (const word of ['token', 'cipher', 'ip', 'device_id', 'body']) expect(printed).toContain(word);
});

test('list --json prints all keys as JSON, without key material', async () => {
  const { code, printed } = await keys(['list', '--json']);
  expect(code).toBe(0);
  const listed = JSON.parse(printed);
  expect(listed).toMatchObject({ rotations: [] });
  expect(listed.keys).toHaveLength(5);
  expect(listed.keys[0]).toEqual({
    purpose: 'cipher',
    field: 'body',
    version: 3,
    state: 'active',
    created_at: expect.any(String),
    retiring_at: null,
    destroyed_at: null,
  });
});

test('rotate starts a rotation that can be paused and resumed, and that workers complete', async () => {
  expect((await keys(['rotate', '--purpose', 'token', '--field', 'ip'])).code).toBe(0);
  expect(await rotationStates()).toEqual(['running']);
  expect((await keys(['pause'])).code).toBe(0);
  expect(await rotationStates()).toEqual(['paused']);

  const json = await run('status', ['--json']);
  expect(JSON.parse(json.printed).rotations).toMatchObject([
    { purpose: 'token', field: 'ip', from: 1, to: 3, state: 'paused', problem: null },
  ]);
  expect((await run('status', [])).printed).toMatch(/ip token 1 → 3: paused in vault, 0 rows done/);
  expect((await keys(['list'])).printed).toMatch(/ip token 1 → 3: paused in vault, 0 rows done/);
  expect(JSON.parse((await keys(['list', '--json'])).printed).rotations).toMatchObject([
    { purpose: 'token', field: 'ip', rows: 0, total: null, percent: null, seconds_left: null },
  ]);

  const again = await keys(['rotate', '--purpose', 'token']);
  expect(again).toMatchObject({ code: 1, printed: expect.stringContaining('keys resume') });
  expectNoSql(again.printed);
  expect((await keys(['resume'])).code).toBe(0);
  const logged = (await work()).filter(({ msg }) => msg.startsWith('rotation of the token key of ip'));
  expect(logged).toHaveLength(2);
  expect(logged[1]!.total).toBeGreaterThan(60);
  expect(logged[1]!.rows).toBe(logged[1]!.total);
  expect(await rotationStates()).toEqual(['done']);
  expect(JSON.parse((await run('status', ['--json'])).printed).rotations).toEqual([]);
});

/** The messages of a command name its options and not SQL. */
function expectNoSql(printed: string): void {
  expect(printed).not.toMatch(/select |masking\.|=>/);
}

test('destroy refuses a key in use and says what to do, and then destroys it', async () => {
  const active = await keys(['destroy', 'cipher', '1']);
  expect(active).toMatchObject({ code: 1, printed: expect.stringContaining('ML007') });
  expect(active.printed).toContain('masked-logins keys rotate --purpose cipher');
  await keys(['rotate', '--purpose', 'cipher', '--field', 'ip']);
  const held = await keys(['destroy', 'cipher', '1']);
  expect(held).toMatchObject({ code: 1, printed: expect.stringContaining('ML006') });
  const { rows } = await pipeline.superuser.query(
    'select count(*) as n from masking.vault where key_version = 1',
  );
  expect(held.printed).toContain(`--losing ${rows[0].n}`);
  expect(await keys(['destroy', 'cipher', '1', '--losing', '1'])).toMatchObject({ code: 1 });
  for (const { printed } of [active, held]) expectNoSql(printed);
  expect(await states()).toContain('cipher 1 retiring');
  await work();
  const nothing = await keys(['destroy', 'cipher', '1', '--losing', '1']);
  expect(nothing).toMatchObject({ code: 1, printed: expect.stringContaining('Leave --losing out') });
  expect(await keys(['destroy', 'cipher', '1'])).toMatchObject({ code: 0 });
  expect(await states()).toContain('cipher 1 destroyed');
});

test('rewrap changes the key-encryption key, and the old one no longer unseals', async () => {
  const file = path.join(path.dirname(pipeline.stack.file.kekFile), 'next-kek');
  const old = readFileSync(pipeline.stack.file.kekFile, 'utf8').trim();
  const [next, last] = [randomBytes(32).toString('hex'), randomBytes(32).toString('hex')];
  writeFileSync(file, `${next}\n`);
  // A key from the environment is left for the user to replace.
  expect(await keys(['rewrap', '--new-kek-file', file], { MASKING_KEK: old })).toMatchObject({ code: 0 });
  expect(readFileSync(pipeline.stack.file.kekFile, 'utf8').trim()).toBe(old);
  const shown = await keys(['fingerprint']);
  expect(shown.code).toBe(0);
  for (const kek of [old, next]) expect(shown.printed).toContain(fingerprintOf(Buffer.from(kek, 'hex')));
  expect(await keys(['seal'])).toMatchObject({ code: 0 });
  expect(await sealed()).toBe(true);
  expect(await keys(['rotate'])).toMatchObject({ code: 1, printed: expect.stringContaining('ML001') });
  expect(await keys(['unseal'])).toMatchObject({ code: 1, printed: expect.stringContaining('ML002') });
  expect(await sealed()).toBe(true);
  expect(await keys(['unseal'], { MASKING_KEK: next })).toMatchObject({ code: 0 });
  // Without a key in the environment, the command uses the stack's key file and replaces the key in it.
  writeFileSync(file, `${last}\n`);
  const rewrapped = await keys(['rewrap', '--new-kek-file', file]);
  expect(rewrapped).toMatchObject({ code: 0, printed: expect.stringContaining(pipeline.stack.file.kekFile) });
  expect(readFileSync(pipeline.stack.file.kekFile, 'utf8').trim()).toBe(last);
  expect(statSync(pipeline.stack.file.kekFile).mode & 0o777).toBe(0o600);
  expect(await keys(['seal'])).toMatchObject({ code: 0 });
  expect(await keys(['unseal'])).toMatchObject({ code: 0 });
  expect(await sealed()).toBe(false);
  expect(await keys(['unseal'], { MASKING_KEK: old })).toMatchObject({ code: 1 });
  writeFileSync(file, `${old}\n`);
  expect(await keys(['rewrap', '--new-kek-file', file])).toMatchObject({ code: 1 });
  for (const key of [old, next, last])
    expect(holds(Buffer.from(output), Buffer.from(key, 'hex'))).toBe(false);
});

test.each([
  [[]],
  [['no-such-command']],
  [['list', 'too much']],
  [['rotate', '--purpose', 'other']],
  [['rotate', '--field', 'user_id']],
  [['destroy']],
  [['destroy', 'token']],
  [['destroy', 'other', '1']],
  [['destroy', 'token', 'one']],
  [['destroy', 'token', '1', '--losing', '-1']],
  [['destroy', 'token', '1', '--losing', 'all']],
  [['rewrap']],
  [['rewrap', '--new-kek-file', '/nonexistent']],
  [['seal', 'now']],
])('keys %j is a usage error, which exits with code 2 and changes nothing', async (args) => {
  const before = [await states(), await rotationStates(), await sealed()];
  expect((await keys(args)).code).toBe(2);
  expect([await states(), await rotationStates(), await sealed()]).toEqual(before);
});

test('a file without a key is refused, and its content is not shown', async () => {
  const file = path.join(path.dirname(pipeline.stack.file.kekFile), 'no-kek');
  const text = randomBytes(20).toString('hex');
  writeFileSync(file, text);
  const { code, printed } = await keys(['rewrap', '--new-kek-file', file]);
  expect(code).toBe(2);
  expect(printed).not.toContain(text);
});

test('unseal without a key is a usage error', async () => {
  const url = pipeline.stack.file.urls.custodian;
  expect((await keys(['unseal'], { DATABASE_URL: url })).code).toBe(2);
});

test('a login that is not a custodian is refused', async () => {
  const DATABASE_URL = pipeline.stack.file.urls.analyst;
  expect((await keys(['rotate'], { DATABASE_URL })).code).toBe(1);
});

test('no output contains a data key', async () => {
  const { rows } = await pipeline.superuser.query<{ key: Buffer }>(
    `select masking.unwrapped(wrapped) as key from masking.keys where state <> 'destroyed'`,
  );
  expect(rows.length).toBeGreaterThan(5);
  for (const { key } of rows) expect(holds(Buffer.from(output), key)).toBe(false);
});
