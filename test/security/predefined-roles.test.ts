/** What a login can do with the predefined roles of Postgres that a managed service grants. */
import { randomBytes, randomUUID } from 'node:crypto';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { rewrap, unseal } from '../../src/database/kek.ts';
import { copyIn } from '../../src/database/copy.ts';
import { COPY_INBOX, encodeInbox } from '../../src/load/inbox.ts';
import { sqlstate } from '../support/sqlstate.ts';
import { event, maskAll, message, stage as stageBatch } from '../support/staging.ts';
import { loadPeople, request, REVEAL, setPolicy, setStage } from '../support/unmask.ts';
import type { Person, Session, Stage } from '../support/unmask.ts';

/** Roles for the server's files and programs are as powerful as a superuser, and no service grants them. */
const NOT_GRANTED = /server_files|server_program|database_owner/;
/** What pg_read_all_data can read, because row-level security would slow down analysts' queries: tokens. */
const READABLE = ['public.user_logins', 'public.user_logins_compat'];
/** The inboxes, whose triggers check the login. */
const INBOXES = ['staging.inbox', 'masking.kek_inbox', 'masking.next_kek_inbox'];

let stage: Stage;
let people: Person[];
let predefined: string[];
let insider: Session;
let insiderPool: pg.Pool;
let relations: { name: string; column: string }[];
beforeAll(async () => {
  stage = await setStage();
  people = await loadPeople(stage.db, 3);
  await maskAll(stage.db, [message('no JSON')]);
  await stageBatch(stage.db, [message()]);
  const unmasker = await stage.join('earlier', 'logins_unmasker');
  await request(unmasker, 'ip', [people[0]!.ipToken]);
  await stage.db.pool('custodian').query(`select masking.erase_user('nobody', 'DSR-1')`);

  const roles = await stage.db.superuser.query<{ name: string }>(
    `select rolname as name from pg_roles where rolname ~ '^pg_'`,
  );
  predefined = roles.rows.map(({ name }) => name).filter((name) => !NOT_GRANTED.test(name));
  insider = await stage.join('insider', ...predefined);
  insiderPool = await poolOf(insider);
  const names = await stage.db.superuser.query<{ name: string; column: string }>(
    `select format('%I.%I', n.nspname, c.relname) as name, quote_ident(a.attname) as column
       from pg_class c
       join pg_namespace n on n.oid = c.relnamespace
       join pg_attribute a on a.attrelid = c.oid and a.attnum = 1
      where c.relkind in ('r', 'p', 'v') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
        and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e')`,
  );
  relations = names.rows;
});
afterAll(async () => {
  await insiderPool.end();
  await stage.drop();
});

/** A pool of the session's login, which COPY needs. */
async function poolOf(session: Session): Promise<pg.Pool> {
  const url = new URL(stage.db.urls.superuser);
  url.username = session.login;
  url.password = 'insider';
  await stage.db.superuser.query(`alter role ${session.login} password 'insider'`);
  return new pg.Pool({ connectionString: url.toString(), max: 2 });
}

/** A digest of the rows of each table. */
async function contents(): Promise<Record<string, string>> {
  const all: Record<string, string> = {};
  for (const { name } of relations) {
    const { rows } = await stage.db.superuser.query(
      `select coalesce(md5(string_agg(t::text, '|' order by t::text)), '') as digest from ${name} t`,
    );
    all[name] = rows[0].digest;
  }
  return all;
}

const inbox = () =>
  encodeInbox(randomUUID(), [
    { messageId: randomUUID(), receiptHandle: 'r', sentAt: Date.now(), receiveCount: 1, body: event() },
  ]);

test('all predefined roles except those for the server’s files are tested on every table and view', () => {
  expect(predefined.length).toBeGreaterThan(9);
  expect(predefined).toContain('pg_write_all_data');
  expect(relations.length).toBeGreaterThan(35);
});

test('a login with all these roles sees no rows of any table or view except the masked logins', async () => {
  const seen: string[] = [];
  for (const { name } of relations) {
    if ((await insider.value<string>(`select count(*) from ${name}`)) !== '0') seen.push(name);
  }
  expect(seen.sort()).toEqual(READABLE);
});

test('a login with all these roles cannot write to any table, partition or view', async () => {
  const before = await contents();
  for (const { name, column } of relations) {
    for (const statement of [
      `insert into ${name} default values`,
      `insert into ${name} select * from ${name} limit 1`,
      `update ${name} set ${column} = ${column}`,
      `delete from ${name}`,
      `merge into ${name} t using (select 1) s on false when not matched then insert default values`,
      `merge into ${name} t using (select 1) s on true when matched then delete`,
      `copy ${name} from stdin`,
      `truncate ${name}`,
    ]) {
      await insider.run('begin');
      await insider.run(statement);
      await insider.run('commit');
    }
  }
  expect(await contents()).toEqual(before);
});

test.each([
  `insert into unmask.policy values ('pg_read_all_data', 1000000, 1000000, 1000000, '1 day')`,
  `insert into audit.events select 1000, now(), 'somebody', 'approve', '{}', '{}', ''`,
  `insert into masking.retention_policy (singleton) values (true)`,
  `insert into graphile_migrate.migrations (hash, filename) values ('sha1:0', '000099.sql')`,
  'insert into graphile_worker.migrations (id) values (1000)',
  `insert into graphile_worker._private_tasks (identifier) values ('mine')`,
  `insert into public.user_logins (user_id, create_date, message_id) values ('u', now(), gen_random_uuid())`,
  `insert into public.user_logins_default (user_id, create_date, message_id) values ('u', now(), gen_random_uuid())`,
  'delete from public.user_logins',
  'delete from public.user_logins_compat',
  'update public.user_logins set masked_ip = null',
])('a login with all these roles is refused: %s', async (statement) => {
  expect(await insider.state(statement)).toBe('42501');
});

test('a login with all these roles cannot read or write partitions that are created later', async () => {
  await stage.db.pool('worker').query('select staging.maintain_partitions(months_ahead => 5)');
  const { rows } = await stage.db.superuser.query<{ name: string }>(
    `select i.inhrelid::regclass::text as name from pg_inherits i where i.inhparent = 'public.user_logins'::regclass`,
  );
  expect(rows.length).toBeGreaterThan(7);
  for (const { name } of rows) {
    expect(
      await insider.state(`insert into ${name} (user_id, create_date, message_id)
      values ('u', now(), gen_random_uuid())`),
    ).toBe('42501');
    expect(await insider.value(`select count(*) from ${name}`)).toBe('0');
  }
});

describe('the inboxes check the login', () => {
  test('pg_write_all_data alone does not open any of them', async () => {
    expect(await sqlstate(unseal(insiderPool, randomBytes(32)))).toBe('42501');
    expect(await sqlstate(rewrap(insiderPool, randomBytes(32)))).toBe('42501');
    const client = await insiderPool.connect();
    expect(await sqlstate(copyIn(client, COPY_INBOX, inbox()))).toBe('42501');
    client.release();
    for (const inbox of INBOXES) {
      expect(await insider.state(`insert into ${inbox} select * from ${inbox}`)).toBe('none');
      expect(await insider.state(`insert into ${inbox} default values`)).toBe('42501');
    }
    expect(await sqlstate(unseal(stage.db.pool('worker'), stage.db.kek))).toBe('none');
  });

  test.each([
    ['loader', [COPY_INBOX]],
    ['worker', [COPY_INBOX, 'unseal']],
    ['custodian', [COPY_INBOX, 'unseal', 'rewrap']],
    ['analyst', []],
    ['unmasker', []],
    ['approver', []],
    ['auditor', []],
  ] as const)('a member of logins_%s with pg_write_all_data can use only %j', async (role, inboxes) => {
    const session = await stage.join(`both_${role}`, `logins_${role}`, 'pg_write_all_data');
    const pool = await poolOf(session);
    const client = await pool.connect();
    const states = {
      [COPY_INBOX]: await sqlstate(client.query('begin').then(() => copyIn(client, COPY_INBOX, inbox()))),
      unseal: (await client.query('rollback'), await sqlstate(unseal(pool, stage.db.kek))),
      // The same key again is accepted and changes nothing.
      rewrap: await sqlstate(rewrap(pool, stage.db.kek)),
    };
    client.release();
    await pool.end();
    for (const [inbox, state] of Object.entries(states)) {
      const allowed = (inboxes as readonly string[]).includes(inbox);
      expect({ inbox, state }).toEqual({ inbox, state: allowed ? 'none' : '42501' });
    }
  });
});

test('an unmasker with all these roles cannot forge an approval, an event or a policy', async () => {
  await setPolicy(stage.db, 'logins_unmasker', { approvalAbove: 0 });
  const unmasker = await stage.join('unmasker', 'logins_unmasker', ...predefined);
  const id = await request(
    unmasker,
    'ip',
    people.map(({ ipToken }) => ipToken),
  );
  const forgeries = [
    `insert into audit.events (event_id, at, actor, action, details, previous_hashes, hash)
     values (1000, now(), 'somebody', 'approve', '{"request_id": "${id}"}', '{}', '')`,
    `insert into unmask.approvals (request_id, approved_by, digest, event_id) values ('${id}', 'somebody', '', 1000)`,
    `insert into unmask.requests (tokens, kind, reason, role_name, expires_at, needs_approval, event_id)
     values ('{}', 'ip', 'r', 'logins_unmasker', now(), false, 1)`,
  ];
  for (const forgery of forgeries) expect(await unmasker.state(forgery)).toBe('42501');
  await unmasker.run('update unmask.policy set approval_above = 1000');
  await unmasker.run('update unmask.requests set needs_approval = false');
  expect(await unmasker.state(REVEAL, [id])).toBe('ML105');
  expect((await stage.db.superuser.query('select intact from audit.verify()')).rows).toEqual([
    { intact: true },
  ]);
  await setPolicy(stage.db, 'logins_unmasker');
});

test('no predefined role may call a function of masked-logins', async () => {
  const { rows } = await stage.db.superuser.query(
    `select p.oid::regprocedure::text as callable
       from pg_proc p join pg_namespace n on n.oid = p.pronamespace
      where n.nspname in ('public', 'staging', 'masking', 'unmask', 'audit', 'graphile_worker')
        and has_function_privilege($1, p.oid, 'execute')`,
    [insider.login],
  );
  expect(rows).toEqual([]);
});

test('a login that sets sequences makes inserts fail until the owner corrects the sequences', async () => {
  const erase = `select masking.erase_user('nobody else', 'DSR-2')`;
  const submit = () => sqlstate(stageBatch(stage.db, [message()]));
  const sequence = (
    await stage.db.superuser.query<{ name: string }>(
      `select pg_get_serial_sequence('graphile_worker._private_jobs', 'id') as name`,
    )
  ).rows[0]!.name;
  expect(await insider.state(`select setval('masking.erasures_erasure_id_seq', 1, false)`)).toBe('none');
  expect(await insider.state(`select setval('${sequence}', 1, false)`)).toBe('none');
  expect(await sqlstate(stage.db.pool('custodian').query(erase))).toBe('23505');
  expect(await submit()).toBe('23505');
  // A superuser or the owner corrects the sequences.
  await stage.db.superuser.query(
    `select setval('masking.erasures_erasure_id_seq', 1000), setval('${sequence}', 1000)`,
  );
  expect(await sqlstate(stage.db.pool('custodian').query(erase))).toBe('none');
  expect(await submit()).toBe('none');
});

test('a login that ends sessions can interrupt masking, and each message still becomes one row', async () => {
  const signaller = await stage.join('signaller', 'pg_signal_backend');
  const sent = message();
  const batchId = await stageBatch(stage.db, [sent]);
  const worker = new pg.Client({ connectionString: stage.db.urls.worker });
  worker.on('error', () => {});
  await worker.connect();
  const { rows } = await worker.query('select pg_backend_pid() as pid');
  await worker.query('begin');
  await worker.query('select masking.mask_batch($1)', [batchId]);
  const ended = new Promise((resolve) => worker.once('end', resolve));
  expect(await signaller.value('select pg_terminate_backend($1)', [rows[0].pid])).toBe(true);
  await ended;
  const count = async () =>
    (await stage.db.superuser.query('select from public.user_logins where message_id = $1', [sent.id]))
      .rowCount;
  expect(await count()).toBe(0);
  await stage.db.pool('worker').query('select masking.mask_batch($1)', [batchId]);
  await stage.db.pool('worker').query('select masking.mask_batch($1)', [batchId]);
  expect(await count()).toBe(1);
});

test('pg_create_subscription is useless without CREATE on the database', async () => {
  expect(
    await insider.state(
      `create subscription mine connection 'password=x' publication p with (connect = false)`,
    ),
  ).toBe('42501');
});
