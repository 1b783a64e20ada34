import { spawn } from 'node:child_process';
import { once } from 'node:events';
import net, { type AddressInfo } from 'node:net';
import path from 'node:path';
import pg from 'pg';
import pino from 'pino';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { childEnvironment, MASKED_LOGINS } from '../../local/environment.ts';
import { createLogger, type Logger } from '../../src/log.ts';
import { databaseAt } from '../../src/database/url.ts';
import { runWorker, runWorkerOnce } from '../../src/work/worker.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { until } from '../support/pipeline.ts';
import { ledgerOf, message, stage } from '../support/staging.ts';
import { NO_QUEUE, workerOptions } from './options.ts';

const ROOT = path.join(import.meta.dirname, '../..');

let db: TestDatabase;
beforeEach(async () => {
  db = await createTestDatabase();
});
afterEach(() => db.drop());

const never = new AbortController().signal;

const options = (stop: AbortSignal, log: Logger = createLogger('silent'), url = db.urls.worker) =>
  workerOptions(db, { stop, log, database: databaseAt(url) });

/** A logger that keeps every line. */
function keeper(): { log: Logger; lines: Record<string, unknown>[]; text(): string } {
  const lines: Record<string, unknown>[] = [];
  const log = pino({ level: 'trace' }, { write: (line: string) => lines.push(JSON.parse(line)) });
  return { log, lines, text: () => JSON.stringify(lines) };
}

const warnings = (lines: Record<string, unknown>[]) => lines.filter(({ level }) => Number(level) >= 40);

/** A worker that runs while a test does, and is told to stop after it. */
async function whileWorking(log: Logger, use: () => Promise<void>): Promise<void> {
  const stop = new AbortController();
  const worker = runWorker(options(stop.signal, log));
  try {
    await Promise.race([use(), worker.then(() => Promise.reject(new Error('the worker ended')))]);
  } finally {
    stop.abort();
    await worker;
  }
}

const beating = async () => (await db.superuser.query('select from staging.workers')).rowCount;
const masked = async (batchId: string) => (await ledgerOf(db, batchId)).masked;

async function listeners(): Promise<number> {
  const { rows } = await db.superuser.query<{ n: number }>(
    `select count(*)::int as n from pg_stat_activity
      where datname = current_database() and usename = 'local_worker' and query ilike '%listen "jobs:insert"%'`,
  );
  return rows[0]!.n;
}

test('nobody stops a worker by NOTIFY, and no payload reaches its log', async () => {
  const { log, lines, text } = keeper();
  await whileWorking(log, async () => {
    await until(async () => (await listeners()) > 0);
    for (const channel of ['worker:migrate', 'jobs:insert']) {
      for (const payload of [
        '{"breaking": true, "migrationNumber": "canary-7d", "count": 1e9}',
        '{"count": "canary-7d"}',
        'canary-7d',
        '',
      ]) {
        await db.pool('analyst').query('select pg_notify($1, $2)', [channel, payload]);
      }
    }
    const batchId = await stage(db, [message()]);
    await until(() => masked(batchId));
  });
  expect(text()).not.toContain('canary-7d');
  expect(
    warnings(lines).filter(({ msg }) => /cannot work and tries again|migration/.test(String(msg))),
  ).toEqual([]);
});

test('upkeep that hangs leaves every place to masking', async () => {
  await whileWorking(createLogger('silent'), async () => {
    await until(async () => (await listeners()) > 0);
    const holder = new pg.Client(db.urls.superuser);
    await holder.connect();
    // If a job holds one of them and waits for another, the job is to give way.
    await holder.query(`set deadlock_timeout = '1min'`);
    await holder.query(
      'begin; lock table masking.rotations, masking.erasures, masking.retention_policy, staging.totals in access exclusive mode',
    );
    await db.superuser.query(
      `select graphile_worker.add_job(t, job_key => t, priority => -10)
         from unnest('{rotate_keys,erase_users,purge_vault,retention,clean_ledger}'::text[]) t`,
    );
    await until(async () => {
      const { rowCount } = await db.superuser.query(
        `select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`,
      );
      return rowCount! > 0;
    });
    const batchId = await stage(db, [message()]);
    await until(() => masked(batchId), 15_000).finally(() => holder.end());
    expect(await masked(batchId)).toBe(true);
  });
});

test('each id under which a worker locks jobs has a heartbeat', async () => {
  await whileWorking(createLogger('silent'), async () => {
    await until(async () => (await beating()) === 2);
    expect(await beating()).toBe(2);
  });
});

test('what a worker had locked is free as soon as it has started anew, be it at the second attempt', async () => {
  await whileWorking(createLogger('silent'), async () => {
    await until(async () => (await beating()) === 2);
    // Cancels whatever takes or frees jobs, and counts the attempts to free them.
    await db.superuser.query(
      `select graphile_worker.add_job('none', job_key => 'held');
       update graphile_worker._private_jobs set locked_at = now(), locked_by = (select min(worker_id) from staging.workers)
        where key = 'held';
       create sequence public.attempts;
       create function public.cancel() returns trigger language plpgsql security definer as $$ begin
         if session_user <> 'local_worker' then return null; end if;
         if current_query() ilike '%force_unlock%' then perform nextval('public.attempts'); end if;
         raise exception using errcode = '57014';
       end $$;
       create trigger cancel before update on graphile_worker._private_jobs execute function public.cancel()`,
    );
    await stage(db, [message()]);
    await until(async () => {
      const { rows } = await db.superuser.query('select is_called from public.attempts');
      return rows[0]!.is_called;
    });
    await db.superuser.query('drop trigger cancel on graphile_worker._private_jobs');
    const lockedBy = async () =>
      (await db.superuser.query(`select locked_by from graphile_worker.jobs where key = 'held'`)).rows[0]
        .locked_by;
    // By the heartbeats it would take half a minute.
    await until(async () => (await lockedBy()) === null, 15_000);
    expect(await lockedBy()).toBeNull();
  });
});

test('a worker that cannot take jobs fails, whatever graphile-worker makes of it', async () => {
  await db.superuser.query('revoke update on graphile_worker._private_jobs from logins_worker');
  await stage(db, [message()]);
  await expect(runWorkerOnce(options(never))).rejects.toMatchObject({ code: '42501' });
  await expect(runWorker(options(never))).rejects.toMatchObject({ name: 'FatalError' });
});

test.each([[['--once']], [[]]])(
  'as a command with %j it exits with 1 then, and prints no stack',
  async (args) => {
    await db.superuser.query('revoke update on graphile_worker._private_jobs from logins_worker');
    await stage(db, [message()]);
    const child = spawn(process.execPath, [MASKED_LOGINS, 'worker', ...args], {
      cwd: ROOT,
      env: childEnvironment({
        DATABASE_URL: db.urls.worker,
        SQS_QUEUE_URL: NO_QUEUE.url,
        AWS_ENDPOINT_URL_SQS: NO_QUEUE.endpoint,
        AWS_REGION: NO_QUEUE.region,
        AWS_ACCESS_KEY_ID: 'test',
        AWS_SECRET_ACCESS_KEY: 'test',
        MASKING_KEK: db.kek.toString('hex'),
      }),
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let output = '';
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', (chunk) => (output += String(chunk)));
    const [code] = await once(child, 'close');
    expect({ code, stack: /^\s+at /m.test(output) }).toEqual({ code: 1, stack: false });
  },
);

test('what a job carries is not repeated where it fails', async () => {
  await db.superuser.query(
    `select graphile_worker.add_job('mask_batch', json_build_object('batch_id', 'canary-7d'))`,
  );
  const { log, text } = keeper();
  expect(await runWorkerOnce(options(never, log))).toMatchObject({ failed: 1 });
  const { rows } = await db.superuser.query('select last_error from graphile_worker.jobs');
  expect(JSON.stringify(rows)).toContain('22P02');
  expect(text() + JSON.stringify(rows)).not.toContain('canary-7d');
});

test('a database that is away is told once in a while, with its host and port, and with no login', async () => {
  const attempts: (() => void)[] = [];
  let connections = 0;
  const server = net.createServer((socket) => {
    connections += 1;
    socket.destroy();
    for (const attempt of attempts) attempt();
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const { port } = server.address() as AddressInfo;
  const fifth = new Promise<void>((resolve) => attempts.push(() => connections === 5 && resolve()));
  const { log, lines, text } = keeper();
  const stop = new AbortController();
  const url = `postgres://somebody:secret@127.0.0.1:${port}/logins`;
  const worker = runWorker(options(stop.signal, log, url));
  await fifth;
  stop.abort();
  await worker;
  server.close();
  // Beside what the end of a worker says: it could not empty staging.
  const told = warnings(lines).filter((line) => 'attempts' in line);
  expect(told).toEqual([expect.objectContaining({ attempts: 1 })]);
  expect(text()).toContain(`127.0.0.1:${port}/logins`);
  expect(text()).not.toMatch(/somebody|secret/);
});
