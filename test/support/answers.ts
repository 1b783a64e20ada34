/** Everything that a database returns about one fixed batch, in a form that does not depend on keys, ids and times. */
import { randomUUID } from 'node:crypto';
import type pg from 'pg';
import type { StackLogin } from '../../local/stack/logins.ts';
import type { TestDatabase } from './database.ts';
import { request, reveal, rotate, type Pools } from './keys.ts';
import { maskAll, ledgerOf, type Message } from './staging.ts';

const PREFIX = 'answers-';

/**
 * Values that a setting might change: with backslashes, quotes, upper case, digits of other scripts, various lengths.
 */
const VALUES: [ip: string | null, device: string | null, version: string][] = [
  ['203.0.113.9', 'device', '7.1'],
  ['::ffff:203.0.113.9', 'DEVICE', 'v12.3'],
  ['2001:DB8::A', 'd'.repeat(64), ' 3'],
  ['2001:db8:0:0::a', 'd'.repeat(63), 'V4-beta'],
  ['203.0.113.9:443', String.raw`back\slash \x41 \'`, '١٢'],
  ['203.0.113.9, 198.51.100.1', `quotes ' "`, '1234567890'],
  ['010.1.2.3', 'Straße', '5'],
  [null, 'stra\u00dfe', ''],
  ['NULL', 'é', 'latest'],
  ['{NULL}', 'e\u0301', '2'],
  ['01/02/2026', 'İIıi', '0'],
  ['1e3', '2', '6.0'],
];

const MALFORMED: (string | Uint8Array)[] = [
  'no JSON',
  '{"user_id":7}',
  '{"user_id":"\\u0000"}',
  Buffer.from([0x7b, 0xff, 0x00]),
  String.raw`{"back\\slash": "\\x41"}`,
];

/** Pools of a database, for each login. */
export type Sessions = Pick<TestDatabase, 'superuser' | 'pool'>;

/** Loads the batch, reveals it, rotates every key, reveals it again, and verifies the audit log. */
export async function answersOf(sessions: Sessions): Promise<Record<string, unknown>> {
  const db = sessions as TestDatabase & Pools;
  // Each value twice. The message ids are new, so rows of earlier batches do not matter.
  const users = [...VALUES, ...VALUES].map((values, n) => ({
    values,
    user: `${PREFIX}${n}`,
    id: randomUUID(),
  }));
  const messages: Message[] = [
    ...users.map(({ user, id, values: [ip, device, version] }) => ({
      id,
      body: JSON.stringify({ user_id: user, ip, device_id: device, app_version: version }),
    })),
    ...MALFORMED.map((body) => ({ id: randomUUID(), body })),
  ];
  const ids = users.map(({ id }) => id);
  const badIds = messages.slice(users.length).map(({ id }) => id);

  const { batchId, receipts } = await maskAll(db, messages);
  const ledger = await ledgerOf(db, batchId);
  const again = await ledgerOf(
    db,
    (
      await maskAll(
        db,
        messages.map((each) => ({ ...each, receiveCount: 2 })),
      )
    ).batchId,
  );
  const { rows: reasons } = await db.superuser.query<{ message_id: string; reason: string }>(
    'select message_id, reason from staging.quarantine where message_id = any ($1)',
    [badIds],
  );
  const revealed = await revealedOf(db, ids);
  const bodies = await bodiesOf(db.pool('unmasker'), badIds);
  const found = await countFound(db.pool('unmasker'));
  await rotate(db);
  await finish(db.pool('worker'));
  const { rows: compat } = await db.pool('analyst').query<{ major: number | null; is_day: boolean }>(
    `select c.app_version as major, c.create_date = date '2026-01-15' as is_day
       from public.user_logins l
       join public.user_logins_compat c on c.user_id operator(pg_catalog.=) l.user_id
      where l.message_id = any ($1)
      order by array_position($1, l.message_id), c.app_version`,
    [ids],
  );
  const { rows: verified } = await db.pool('auditor').query('select intact, fault from audit.verify()');
  return {
    receipts: receipts.length,
    ledger,
    again,
    reasons: badIds.map((id) => reasons.find((row) => row.message_id === id)?.reason),
    bodies: badIds.map((id) => bodies.get(id)),
    revealed,
    found,
    revealedAfterRotation: await revealedOf(db, ids),
    foundAfterRotation: await countFound(db.pool('unmasker')),
    compat: new Set(compat.map(({ major, is_day }) => `${major} ${is_day}`)),
    verified,
  };
}

/** Runs steps until no rotation is left, in READ COMMITTED like a worker. A step refuses other levels (25000). */
async function finish(worker: pg.Pool): Promise<void> {
  const client = await worker.connect();
  try {
    for (let more = true; more;) {
      await client.query('begin isolation level read committed');
      const { rows } = await client.query<{ more: boolean }>('select more from masking.rotate_step()');
      await client.query('commit');
      more = rows[0]!.more;
    }
    client.release();
  } catch (error) {
    client.release(true);
    throw error;
  }
}

/** The revealed value of each login's tokens, and the index of the first login with the same token. */
async function revealedOf(db: Pools, ids: string[]): Promise<unknown[]> {
  const { rows } = await db.pool('analyst').query<Record<'ip' | 'device', string | null>>(
    `select masked_ip as ip, masked_device_id as device from public.user_logins
      where message_id = any ($1) order by array_position($1, message_id)`,
    [ids],
  );
  const of = async (column: 'ip' | 'device', field: 'ip' | 'device_id') => {
    const tokens = rows.map((row) => row[column]);
    const wanted = [...new Set(tokens)].filter((token) => token !== null);
    const values = await reveal(db, await request(db, field, wanted));
    return tokens.map((token) => token && { value: values.get(token), first: tokens.indexOf(token) });
  };
  return [await of('ip', 'ip'), await of('device', 'device_id')];
}

async function bodiesOf(unmasker: pg.Pool, ids: string[]): Promise<Map<string, string>> {
  const { rows } = await unmasker.query<{ id: string }>(
    `select unmask.request_quarantined($1, reason => 'a test') as id`,
    [ids],
  );
  const { rows: bodies } = await unmasker.query<{ token: string; value: string }>(
    'select * from unmask.reveal($1)',
    [rows[0]!.id],
  );
  return new Map(bodies.map(({ token, value }) => [token, value]));
}

/**
 * The number of tokens of known values: an address, an address in another spelling, and an address that was not sent.
 */
async function countFound(unmasker: pg.Pool): Promise<number[]> {
  const counts = [];
  for (const value of ['203.0.113.9', '2001:0db8::000a', '192.0.2.200']) {
    await unmasker.query(`select unmask.request_find('ip', $1, reason => 'a test')`, [value]);
    const { rowCount } = await unmasker.query(`select * from unmask.find('ip', $1)`, [value]);
    counts.push(rowCount ?? 0);
  }
  return counts;
}

/** The logins that query. */
export const QUERYING_LOGINS = [
  'loader',
  'worker',
  'analyst',
  'unmasker',
  'custodian',
  'auditor',
] as const satisfies StackLogin[];
