import { randomUUID } from 'node:crypto';
import { afterEach, beforeEach, expect } from 'vitest';
import type { StackLogin } from '../../local/stack/logins.ts';
import pg from 'pg';
import { createTestDatabase, type TestDatabase } from './database.ts';
import { until } from './pipeline.ts';
import { event, maskAll } from './staging.ts';

/** What these helpers need from a database. */
export interface Pools {
  superuser: pg.Pool;
  pool(login: StackLogin): pg.Pool;
}

/** A login as it was sent, before masking. */
export interface Login {
  user: string;
  ip: string | null;
  device: string | null;
}

export interface MaskedLogin {
  id: string;
  user: string;
  ip: string | null;
  device: string | null;
}

export interface Rotation {
  purpose: string;
  field: string;
  state: string;
  phase: string;
  rows: number;
  problem: string | null;
}

export type Purpose = 'token' | 'cipher';

/** `count` logins, several of which share an address, a device or a user. */
export function sharedLogins(count: number): Login[] {
  return Array.from({ length: count }, (_, n) => ({
    user: `user-${n % 7}`,
    ip: n % 11 === 10 ? null : `10.0.${n % 3}.${n % 13}`,
    device: n % 9 === 8 ? null : `device-${n % 10}`,
  }));
}

/**
 * Creates a database before each test, with these logins loaded and no limit on the number of revealed values.
 *
 * @param use called before each test
 */
export function loadBeforeEach(
  logins: readonly Login[],
  use: (loaded: { db: TestDatabase; sent: Map<string, Login> }) => void,
): void {
  let db: TestDatabase;
  beforeEach(async () => {
    db = await createTestDatabase();
    await liftLimits(db);
    use({ db, sent: await load(db, logins) });
  });
  afterEach(() => db.drop());
}

/** Loads logins in one batch. Returns what was sent, by message id. */
export async function load(
  db: Parameters<typeof maskAll>[0],
  logins: readonly Login[],
  sentAt?: number,
): Promise<Map<string, Login>> {
  const sent = new Map(logins.map((login) => [randomUUID() as string, login]));
  const messages = [...sent].map(([id, { user, ip, device }]) => ({
    id,
    body: event({ user_id: user, ip, device_id: device }),
    ...(sentAt === undefined ? {} : { sentAt }),
  }));
  await maskAll(db, messages);
  return sent;
}

/** Raises the limits of the policy, which other tests test. */
export async function liftLimits({ superuser }: Pools): Promise<void> {
  await superuser.query(
    'update unmask.policy set values_per_request = 1000000, values_per_day = 1000000000, approval_above = 1000000',
  );
}

/** @returns the ids of the new rotations */
export async function rotate(db: Pools, purpose?: Purpose, field?: string): Promise<string[]> {
  const { rows } = await db
    .pool('custodian')
    .query<{ id: string }>('select masking.rotate(purpose => $1, field => $2) as id', [
      purpose ?? null,
      field ?? null,
    ]);
  return rows.map(({ id }) => id);
}

/** Runs one step, like a worker. Returns whether there is more to do. */
export async function step(db: Pools, rows = 500): Promise<boolean> {
  const { rows: result } = await db
    .pool('worker')
    .query<{ more: boolean }>('select more from masking.rotate_step(max_rows => $1)', [rows]);
  return result[0]!.more;
}

/** Runs steps until no rotation is left, and returns their number. Throws if the rotation does not end. */
export async function finish(db: Pools, rows = 500, maxSteps = 500): Promise<number> {
  for (let steps = 1; steps <= maxSteps; steps += 1) {
    // A step also returns false while another transaction has the rotation, such as a call that has just failed.
    if (await step(db, rows)) continue;
    if ((await rotationsOf(db)).every(({ state }) => state !== 'running')) return steps;
  }
  throw new Error('the rotation does not end');
}

export async function destroy(db: Pools, purpose: Purpose, version: number, losing?: number): Promise<void> {
  await (losing === undefined
    ? db.pool('custodian').query('select masking.destroy_key($1, $2)', [purpose, version])
    : db
        .pool('custodian')
        .query('select masking.destroy_key($1, $2, losing => $3)', [purpose, version, losing]));
}

/** The keys in a state, as `purpose field version`. */
export async function keysIn(db: Pools, state: 'active' | 'retiring' | 'destroyed'): Promise<string[]> {
  const { rows } = await db
    .pool('custodian')
    .query<Record<string, string>>('select * from masking.list_keys() where state = $1', [state]);
  return rows.map(({ purpose, field, version }) => `${purpose} ${field} ${version}`);
}

export async function rotationsOf(db: Pools): Promise<Rotation[]> {
  const { rows } = await db.superuser.query(
    'select purpose, field, state, phase, rows_done::int as rows, problem from masking.rotations order by rotation_id',
  );
  return rows;
}

/** Every login, as an analyst sees it. */
export async function maskedLogins(db: Pools): Promise<MaskedLogin[]> {
  const { rows } = await db
    .pool('analyst')
    .query<MaskedLogin>(
      'select message_id as id, user_id as user, masked_ip as ip, masked_device_id as device from public.user_logins',
    );
  return rows;
}

export async function request(db: Pools, field: 'ip' | 'device_id', tokens: string[]): Promise<string> {
  const { rows } = await db
    .pool('unmasker')
    .query<{ id: string }>(`select unmask.request($1, $2, reason => 'a test') as id`, [field, tokens]);
  return rows[0]!.id;
}

/** The values of a request, by token. */
export async function reveal(db: Pools, requestId: string): Promise<Map<string, string>> {
  const { rows } = await db
    .pool('unmasker')
    .query<{ token: string; value: string }>('select * from unmask.reveal($1)', [requestId]);
  return new Map(rows.map(({ token, value }) => [token, value]));
}

/** Requests and reveals the values of tokens. */
export async function revealAll(
  db: Pools,
  field: 'ip' | 'device_id',
  tokens: string[],
): Promise<Map<string, string>> {
  return tokens.length === 0 ? new Map() : reveal(db, await request(db, field, tokens));
}

export function distinct<T>(values: Iterable<T | null>): T[] {
  return [...new Set(values)].filter((value) => value !== null);
}

/** Expects that the current tokens of every login reveal the values that were sent. */
export async function expectAllReveal(db: Pools, sent: ReadonlyMap<string, Login>): Promise<void> {
  const seen = await maskedLogins(db);
  const ips = await revealAll(db, 'ip', distinct(seen.map(({ ip }) => ip)));
  const devices = await revealAll(db, 'device_id', distinct(seen.map(({ device }) => device)));
  const shown = seen.map(({ id, user, ip, device }) => [
    id,
    { user, ip: ip && ips.get(ip), device: device && devices.get(device) },
  ]);
  expect(Object.fromEntries(shown)).toEqual(Object.fromEntries(sent));
}

/** The tokens of each value. */
export async function tokensByValue(
  db: Pools,
  sent: ReadonlyMap<string, Login>,
  field: 'ip' | 'device',
): Promise<Map<string, Set<string>>> {
  const byValue = new Map<string, Set<string>>();
  for (const login of await maskedLogins(db)) {
    const value = sent.get(login.id)?.[field];
    const token = login[field];
    if (value == null || token === null) continue;
    byValue.set(value, (byValue.get(value) ?? new Set()).add(token));
  }
  return byValue;
}

/** Expects one token and one vault entry for each value, and different tokens for different values. */
export async function expectDuplicatesExact(db: Pools, sent: ReadonlyMap<string, Login>): Promise<void> {
  const fields = [await tokensByValue(db, sent, 'ip'), await tokensByValue(db, sent, 'device')];
  const tokens = fields.flatMap((byValue) => [...byValue.values()].flatMap((each) => [...each]));
  const values = fields.reduce((sum, byValue) => sum + byValue.size, 0);
  expect(tokens).toHaveLength(values);
  expect(new Set(tokens).size).toBe(values);
  const { rows } = await db.superuser.query('select count(*)::int as entries from masking.vault');
  expect(rows[0].entries).toBe(values);
}

/** The versions of the token keys that made the logins' tokens of a field. */
export async function versionsIn(db: Pools, field: 'ip' | 'device'): Promise<number[]> {
  const tokens = distinct((await maskedLogins(db)).map((login) => login[field]));
  return distinct(tokens.map((token) => Number.parseInt(token.slice(0, 2), 16))).sort((a, b) => a - b);
}

/**
 * Opens a transaction on a new connection. Returns the connection and the pid of its server process. The connection is
 * not in the pool: otherwise the pool could not end if a test fails and leaves the transaction open.
 */
export async function openTransaction(
  pool: pg.Pool,
): Promise<{ client: pg.Client & { release(broken?: boolean): void }; pid: number }> {
  const client = new pg.Client(pool.options);
  client.on('error', () => {});
  await client.connect();
  await client.query('begin');
  const { rows } = await client.query<{ pid: number }>('select pg_backend_pid() as pid');
  const release = () => void client.end().catch(() => {});
  return { client: Object.assign(client, { release }), pid: rows[0]!.pid };
}

/** Waits until a server process waits for a lock. */
export function untilBlocked({ superuser }: Pools, pid: number): Promise<void> {
  return until(async () => {
    const { rowCount } = await superuser.query('select from pg_locks where pid = $1 and not granted', [pid]);
    return rowCount !== 0;
  }, 15_000);
}
