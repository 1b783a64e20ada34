/** What happens to keys, requests and users, with canaries everywhere. */
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { parseKek, rewrap, unseal } from '../../../src/database/kek.ts';
import { until } from '../pipeline.ts';
import { close, mask, message, stage, event } from '../staging.ts';
import { quarantined, secretEvent, staged, workOnce } from './message-scenarios.ts';
import type { World } from './world.ts';

/** Makes every data key a canary. */
export async function addDataKeys(world: World, when: string): Promise<void> {
  const { rows } = await world.db.superuser.query<{ name: string; key: Buffer }>(
    `select format('%s key %s of %s', purpose, version, field) as name, masking.unwrapped(wrapped) as key
       from masking.keys where state <> 'destroyed'`,
  );
  for (const { name, key } of rows) {
    world.canaries.add(`${name}, ${when}`, key);
    // It is passed to pgcrypto in hex.
    world.canaries.add(`${name} in hex, ${when}`, key.toString('hex'));
  }
}

/**
 * Seals the database, unseals it with wrong keys and with the right key, and rewraps its keys. Returns the outcomes.
 */
export async function sealAndUnseal(world: World): Promise<Record<string, string | number>> {
  const { db, canaries, recorder, directory } = world;
  const pool = db.pool('custodian');
  const sealedByHand = await world.run('keys', 'custodian', ['seal']).ended;
  const { batch } = await staged(world, 'a batch while the database is sealed');
  const sealed = await recorder.codeOf(mask(db, batch));
  const wrong = await recorder.codeOf(unseal(pool, canaries.key('wrong KEK')));
  const short = await recorder.codeOf(unseal(pool, canaries.key('short KEK').subarray(0, 31)));
  const worker = await world.run('worker', 'worker', ['--once'], {
    MASKING_KEK: canaries.key('wrong KEK of a worker').toString('hex'),
  }).ended;
  await world.run('keys', 'custodian', ['unseal'], { MASKING_KEK: db.kek.toString('hex') }).ended;
  const other = await recorder.codeOf(unseal(pool, canaries.key('another KEK')));
  await db.superuser.query('analyze');
  await mask(db, batch);
  await close(db, batch);

  const kekFile = path.join(directory, 'next-kek');
  const next = canaries.key('next KEK');
  writeFileSync(kekFile, next.toString('base64'));
  const rewrapped = await world.run('keys', 'custodian', ['rewrap', '--new-kek-file', kekFile]).ended;
  const former = await recorder.codeOf(rewrap(pool, db.kek));
  await db.superuser.query('select masking.seal()');
  const old = await recorder.codeOf(unseal(pool, db.kek));
  await unseal(pool, next);
  db.kek = next;
  return { sealedByHand, sealed, wrong, short, worker, other, rewrapped, former, old };
}

/** Runs workers with wrong settings. Returns their exit codes. */
export async function wrongSettings(world: World): Promise<(number | string)[]> {
  const { canaries, directory, recorder, db } = world;
  await db.superuser.query('select masking.seal()');
  const file = path.join(directory, 'no-kek');
  writeFileSync(file, canaries.text('KEK file that holds no key'));
  const codes = [
    { MASKING_KEK: canaries.text('KEK that is none') },
    { MASKING_KEK: canaries.key('KEK with a digit too many').toString('hex') + '0' },
    { MASKING_KEK_FILE: file },
    { MASKING_KEK: canaries.key('one KEK of two').toString('base64'), MASKING_KEK_FILE: file },
    { DATABASE_URL: canaries.text('database that is none'), LOG_LEVEL: canaries.text('level that is none') },
  ].map((variables) => world.run('worker', 'worker', ['--once'], variables).ended);
  const parsed = recorder.codeOf(() => parseKek(canaries.text('KEK that does not parse'), 'MASKING_KEK'));
  const outcomes = await Promise.all([...codes, parsed]);
  await unseal(db.pool('worker'), db.kek);
  return outcomes;
}

/** Rotates every key, and destroys the old keys. */
export async function rotate(world: World): Promise<void> {
  const { db } = world;
  await world.run('keys', 'custodian', ['rotate']).ended;
  await until(async () => {
    await workOnce(world);
    const { rows } = await db.superuser.query(`select from masking.rotations where state <> 'done'`);
    return rows.length === 0;
  });
  await addDataKeys(world, 'after rotation');
  const { rows } = await db.superuser.query(`select purpose, version from masking.keys where state = 'retiring'`);
  for (const { purpose, version } of rows) {
    await db.pool('custodian').query('select masking.destroy_key($1, $2)', [purpose, version]);
  }
} // prettier-ignore

/** Requests and reveals values. Returns the SQLSTATEs of reveals that are refused. */
export async function reveal(world: World): Promise<Record<string, string>> {
  const { db, recorder } = world;
  const unmasker = db.pool('unmasker');
  await db.superuser.query('update unmask.policy set approval_above = 1');
  const messages = ['one', 'two'].map((name) => message(secretEvent(world, `a login to reveal, ${name}`)));
  const batch = await stage(db, messages);
  await mask(db, batch);
  await close(db, batch);
  const { rows } = await db.superuser.query<{ masked_ip: string; user_id: string }>(
    'select masked_ip, user_id from public.user_logins where message_id = any ($1)',
    [messages.map(({ id }) => id)],
  );
  const tokens = rows.map((row) => row.masked_ip);
  const ask = async (statement: string, values: unknown[]): Promise<string> =>
    (await unmasker.query<{ id: string }>(`select unmask.${statement} as id`, values)).rows[0]!.id;
  const show = (id: string) =>
    unmasker.query<{ value: string }>('select value from unmask.reveal($1)', [id]);

  const one = await ask(`request('ip', $1, 'a test')`, [[tokens[0]]]);
  if ((await show(one)).rows.length !== 1) throw new Error('nothing was revealed');
  const both = await ask(`request('ip', $1, 'a test')`, [tokens]);
  const unapproved = await recorder.codeOf(show(both));
  await db.pool('approver').query('select unmask.approve($1)', [both]);
  if ((await show(both)).rows.length !== 2) throw new Error('nothing was revealed after approval');
  await db.superuser.query('update unmask.policy set approval_above = 100');
  await show(await ask(`request_user($1, 'a test')`, [rows[0]!.user_id]));
  const id = await quarantined(world, 'ip of a body to reveal');
  await show(await ask(`request_quarantined($1, 'a test')`, [[id]]));
  await ask(`request_find('ip', '10.9.8.7', 'a test')`, []);

  const client = await unmasker.connect();
  await client.query('begin');
  const { rows: early } = await client.query(`select unmask.request('ip', $1, 'a test') as id`, [[tokens[0]]]);
  const uncommitted = await recorder.codeOf(client.query('select * from unmask.reveal($1)', [early[0].id]));
  client.release(true);
  const swap = `update masking.vault v set ciphertext = o.ciphertext from masking.vault o
    where v.token = any ($1::uuid[]) and o.token = any ($1::uuid[]) and o.token <> v.token`;
  await db.superuser.query(swap, [tokens]);
  const swapped = await recorder.codeOf(show(one));
  await db.superuser.query(swap, [tokens]);
  await db.superuser.query('select masking.seal()');
  const sealed = await recorder.codeOf(show(one));
  await unseal(db.pool('worker'), db.kek);
  return { unapproved, uncommitted, swapped, sealed };
} // prettier-ignore

/** Replays a quarantined message, and erases a user. */
export async function replayAndErase(world: World): Promise<void> {
  const { db } = world;
  const id = await quarantined(world, 'ip of a body to replay');
  await db.pool('custodian').query('select * from staging.replay($1)', [[id]]);
  const batch = await stage(db, [
    message(secretEvent(world, 'somebody erased', { user_id: 'erased' })),
    message(event({ user_id: 'erased', locale: 7, ip: world.canaries.address('body of somebody erased') })),
  ]);
  await mask(db, batch);
  await close(db, batch);
  await db.pool('custodian').query(`select masking.erase_user('erased', 'a test')`);
  await until(async () => {
    await workOnce(world);
    const { rows } = await db.superuser.query(`select from masking.erasures where phase <> 'done'`);
    return rows.length === 0;
  });
} // prettier-ignore
