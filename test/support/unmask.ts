/** Logins for a test, with a record of everything that their sessions receive. */
import { randomBytes, randomUUID } from 'node:crypto';
import pg from 'pg';
import { createTestDatabase, type TestDatabase } from './database.ts';
import { holds } from './forms.ts';
import { markLog } from './server-log.ts';
import { dataKey, event, maskAll, message } from './staging.ts';

export type Row = Record<string, unknown>;

/** The outcome of a statement. */
export interface Answer {
  /** The SQLSTATE, or `none` if the statement succeeded. */
  state: string;
  hint: string | undefined;
  rows: Row[];
}

/** One connection of one login. Everything that it receives is recorded: rows, errors with all fields, notices. */
export interface Session {
  login: string;
  client: pg.Client;
  run(statement: string, values?: unknown[]): Promise<Answer>;
  /** The SQLSTATE of a statement, or `none`. */
  state(statement: string, values?: unknown[]): Promise<string>;
  /** The first column of the first row. Throws if the statement fails. */
  value<T = string>(statement: string, values?: unknown[]): Promise<T>;
  notices: string[];
  /** Everything that the session has received. */
  printed(): Buffer;
}

/** A database, and logins that one test creates in it. */
export interface Stage {
  db: TestDatabase;
  /** Values and keys that only authorised sessions may see. */
  secrets: Record<string, string | Buffer>;
  /** Creates a login that is a member of these roles, and opens a session. */
  join(name: string, ...roles: string[]): Promise<Session>;
  /** Opens another session of a login that `join` created. */
  again(session: Session): Promise<Session>;
  /** Opens a session of a superuser, who may see everything. */
  superuser(): Promise<Session>;
  /** Where secrets were found: in what these sessions received, and in the server's log since the start. */
  leaks(...sessions: Session[]): string[];
  /** Throws if `leaks` finds something. */
  refuteLeaks(...sessions: Session[]): void;
  /** Ends all sessions, drops the logins and the database. */
  drop(): Promise<void>;
}

/** Creates a database for a test. Its logins have random names, because all databases of the cluster share them. */
export async function setStage(options: { sealed?: boolean } = {}): Promise<Stage> {
  const db = await createTestDatabase(options);
  const prefix = `test_${randomBytes(5).toString('hex')}`;
  const passwords = new Map<string, string>();
  const sessions: Session[] = [];
  const log = markLog();
  const secrets: Record<string, string | Buffer> = { kek: db.kek };

  const open = async (url: string, login: string) => {
    const session = await openSession(url, login);
    sessions.push(session);
    return session;
  };
  const openAs = (login: string) => {
    const url = new URL(db.urls.superuser);
    url.username = login;
    url.password = passwords.get(login)!;
    return open(url.toString(), login);
  };
  const leaks: Stage['leaks'] = (...watched) => {
    const places = [
      ...watched.map(({ login, printed }) => [login, printed()] as const),
      ['log', log.since()] as const,
    ];
    return places.flatMap(([place, bytes]) => {
      // Plans have line breaks anywhere.
      const plans = bytes.includes('constvalue') ? bytes.toString('latin1').replaceAll(/\s|\\n/g, '') : '';
      return Object.entries(secrets)
        .filter(
          ([, secret]) => holds(bytes, secret) || asNodeTrees(secret).some((tree) => plans.includes(tree)),
        )
        .map(([name]) => `${place}: ${name}`);
    });
  };
  return {
    db,
    secrets,
    leaks,
    refuteLeaks(...watched) {
      const found = leaks(...watched);
      if (found.length > 0) throw new Error(`secrets were shown: ${found.join(', ')}`);
    },
    async join(name, ...roles) {
      const login = `${prefix}_${name}`;
      passwords.set(login, randomUUID());
      await db.superuser.query(
        `create role ${login} login password '${passwords.get(login)}' in role ${roles.join(', ')}`,
      );
      return openAs(login);
    },
    again: (session) => openAs(session.login),
    superuser: () => open(db.urls.superuser, 'superuser'),
    async drop() {
      await Promise.all(sessions.map(({ client }) => client.end()));
      for (const login of passwords.keys()) {
        await db.superuser.query(`drop owned by ${login} cascade; drop role ${login}`);
      }
      await db.drop();
    },
  };
}

async function openSession(connectionString: string, login: string): Promise<Session> {
  const client = new pg.Client({ connectionString, application_name: 'test unmask' });
  const printed: string[] = [];
  const notices: string[] = [];
  client.on('error', () => {});
  client.on('notice', (notice) => {
    notices.push(notice.message ?? '');
    printed.push(everythingIn(notice));
  });
  await client.connect();
  const run = async (statement: string, values?: unknown[]): Promise<Answer> => {
    try {
      const results = [await client.query(statement, values)].flat() as pg.QueryResult<Row>[];
      for (const { rows } of results) printed.push(everythingIn(rows));
      return { state: 'none', hint: undefined, rows: results.at(-1)!.rows };
    } catch (error) {
      if (!(error instanceof pg.DatabaseError)) throw error;
      printed.push(everythingIn(error));
      return { state: error.code ?? 'no code', hint: error.hint, rows: [] };
    }
  };
  return {
    login,
    client,
    notices,
    run,
    state: async (statement, values) => (await run(statement, values)).state,
    async value<T>(statement: string, values?: unknown[]) {
      const { state, rows } = await run(statement, values);
      if (state !== 'none') throw new Error(`${state}: ${statement}`);
      return Object.values(rows[0] ?? {})[0] as T;
    },
    printed: () => Buffer.from(printed.join('\n')),
  };
}

const asText = (_: string, value: unknown) =>
  typeof value === 'object' && value !== null && 'type' in value && value.type === 'Buffer'
    ? Buffer.from((value as unknown as { data: number[] }).data).toString('hex')
    : value;

/** Like JSON.stringify, but with bytes in a form that can be searched, and with an error's message. */
function everythingIn(value: object): string {
  return `${JSON.stringify({ ...value }, asText)} ${value instanceof Error ? String(value) : ''}`;
}

/** A secret as debug_print_plan prints a constant's bytes. A key also in hexadecimal, as it is passed to pgcrypto. */
function asNodeTrees(secret: string | Buffer): string[] {
  const forms = Buffer.isBuffer(secret)
    ? [secret, Buffer.from(secret.toString('hex'))]
    : [Buffer.from(secret)];
  return forms.map((bytes) => [...bytes].map((byte) => (byte > 127 ? byte - 256 : byte)).join(''));
}

/** A unique value. */
export function canary(what: string): string {
  return `${what}-${randomBytes(15).toString('hex')}`;
}

/** A unique IPv6 address, in canonical form. */
export function address(): string {
  return `fd00:${Array.from({ length: 7 }, () => `1${randomBytes(2).toString('hex').slice(1)}`).join(':')}`;
}

export interface Person {
  user: string;
  ip: string;
  device: string;
  ipToken: string;
  deviceToken: string;
}

/** Masks one login for each of `count` users. All values are unique. */
export async function loadPeople(db: TestDatabase, count: number): Promise<Person[]> {
  const people = Array.from({ length: count }, () => ({
    user: `user-${randomUUID()}`,
    ip: address(),
    device: canary('device'),
  }));
  await maskAll(
    db,
    people.map(({ user, ip, device }) => message(event({ user_id: user, ip, device_id: device }))),
  );
  const { rows } = await db.superuser.query<{ user_id: string; masked_ip: string; masked_device_id: string }>(
    'select user_id, masked_ip, masked_device_id from public.user_logins where user_id = any ($1)',
    [people.map(({ user }) => user)],
  );
  const byUser = new Map(rows.map((row) => [row.user_id, row]));
  return people.map((person) => ({
    ...person,
    ipToken: byUser.get(person.user)!.masked_ip,
    deviceToken: byUser.get(person.user)!.masked_device_id,
  }));
}

/** Quarantines bodies. Returns the ids of their messages. */
export async function quarantine(
  db: TestDatabase,
  bodies: readonly (string | Uint8Array)[],
): Promise<string[]> {
  const messages = bodies.map((body) => message(body));
  await maskAll(db, messages);
  return messages.map(({ id }) => id);
}

/** Adds the values of people and every key of the database to a stage's secrets. */
export async function guard(stage: Stage, people: readonly Person[]): Promise<void> {
  people.forEach(({ ip, device }, n) =>
    Object.assign(stage.secrets, { [`ip ${n}`]: ip, [`device ${n}`]: device }),
  );
  for (const [purpose, field] of [
    ['token', 'ip'],
    ['token', 'device_id'],
    ['cipher', 'ip'],
    ['cipher', 'device_id'],
    ['cipher', 'body'],
  ] as const) {
    stage.secrets[`${purpose} key of ${field}`] = await dataKey(stage.db, purpose, field);
  }
}

/** Requests values of one field, and commits. Returns the request's id. */
export function request(
  session: Session,
  field: string,
  tokens: readonly string[],
  reason = 'INC-1',
): Promise<string> {
  return session.value('select unmask.request($1, $2, reason => $3)', [field, tokens, reason]);
}

/** Sets the limits of a role. */
export async function setPolicy(
  db: TestDatabase,
  role: string,
  policy: { perRequest?: number; perDay?: number; approvalAbove?: number; lifetime?: string } = {},
): Promise<void> {
  await db.superuser.query(
    `insert into unmask.policy (role_name, values_per_request, values_per_day, approval_above, lifetime)
     values ($1, $2, $3, $4, $5)
     on conflict (role_name) do update
       set values_per_request = excluded.values_per_request, values_per_day = excluded.values_per_day,
           approval_above = excluded.approval_above, lifetime = excluded.lifetime`,
    [
      role,
      policy.perRequest ?? 10_000,
      policy.perDay ?? 50_000,
      policy.approvalAbove ?? 100,
      policy.lifetime ?? '1 day',
    ],
  );
}

/** The values that a request shows, by token. */
export async function revealed(session: Session, id: string): Promise<Record<string, unknown>> {
  const { state, rows } = await session.run('select * from unmask.reveal($1)', [id]);
  if (state !== 'none') throw new Error(state);
  return Object.fromEntries(rows.map(({ token, value }) => [token, value]));
}

export const REVEAL = 'select * from unmask.reveal($1)';
