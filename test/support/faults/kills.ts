import type pg from 'pg';
import { numberOf, until } from './asking.ts';
import { retried } from './postgres-faults.ts';
import { FaultError } from './protocol.ts';
import type { World } from './world.ts';

/** A named moment of loader or worker at which somebody is to die. */
export interface Moment {
  name: string;
  who: 'loader' | 'worker';
  point: string;
  /** Makes the process come there; else traffic does. */
  provoke?: (world: World) => Promise<void>;
  /** Holds the server in the middle of the statement that the process is about to send: a lock it runs into last. */
  hold?: { lock: string; statement: string };
}

export const MOMENTS: readonly Moment[] = [
  { name: 'before receive', who: 'loader', point: 'receive:before' },
  { name: 'after receive', who: 'loader', point: 'receive:after' },
  { name: 'in mid-COPY', who: 'loader', point: 'copy:middle' },
  { name: 'after COPY before commit', who: 'loader', point: 'commit:before' },
  { name: 'after commit', who: 'loader', point: 'commit:after' },
  {
    name: 'in masking',
    who: 'worker',
    point: 'mask:before',
    // Everything is written when masking comes to the ledger, and nothing is committed.
    hold: { lock: 'lock table staging.batches in share mode', statement: 'masking.mask_batch' },
  },
  { name: 'masked before delete', who: 'worker', point: 'mask:after' },
  { name: 'between delete and close', who: 'worker', point: 'close:before' },
  {
    name: 'in rotation',
    who: 'worker',
    point: 'rotate:before',
    provoke: beginRotation,
    hold: { lock: 'lock table masking.rotations in share mode', statement: 'masking.rotate_step' },
  },
  {
    name: 'in partition maintenance',
    who: 'worker',
    point: 'partitions:before',
    provoke: dropPartition,
    hold: {
      lock: 'lock table public.user_logins_default in access share mode',
      statement: 'staging.maintain_partitions',
    },
  },
  {
    name: 'in emptying a slot of staging',
    who: 'worker',
    point: 'slots:before',
    provoke: turnSlots,
    hold: {
      lock: 'lock table staging.raw_messages_0, staging.raw_messages_1, staging.raw_messages_2 in access share mode',
      statement: 'staging.recycle_slots',
    },
  },
];

/** How long the statement may take to run into the lock, in milliseconds, and how often it may miss it. */
const HELD_WITHIN_MS = 10_000;
const ATTEMPTS = 5;

/** Kills the process at a moment (`-9`), or the postmaster while the process is there. */
export async function killAt(world: World, moment: Moment, victim: 'process' | 'Postgres'): Promise<void> {
  const { recovery, hit } = world;
  const process = world[moment.who];
  const kind = `kill -9 of ${victim === 'process' ? `the ${moment.who}` : 'Postgres'} ${moment.name}`;
  const release = await reach(world, moment);
  if (victim === 'process') {
    const end = await process.end('SIGKILL');
    if (end !== 'SIGKILL') throw new FaultError(`${process.name} ended by itself: ${end}`);
  } else {
    await world.killPostgres('SIGKILL');
    process.go(moment.point);
  }
  hit(kind);
  await release?.();
  await recovery.measure(kind);
}

/** Comes to the moment; what it returns lets go of the server, where that is held. */
async function reach(world: World, moment: Moment): Promise<(() => Promise<void>) | undefined> {
  for (let attempt = 1; ; attempt += 1) {
    const reached = world[moment.who].reach(moment.point);
    await Promise.all([reached, moment.provoke?.(world), world.traffic.send(60)]);
    if (moment.hold === undefined) return undefined;
    const release = await holdServer(world, moment);
    if (release !== undefined) return release;
    // A batch that was masked before has nothing to write, and comes by no lock: the next one, then.
    if (attempt === ATTEMPTS) throw new FaultError(`the server never was in ${moment.hold.statement}`);
  }
}

/** Takes a lock that the statement runs into when nearly all is done, and lets the process send the statement. */
async function holdServer(
  world: World,
  { who, point, hold }: Moment,
): Promise<(() => Promise<void>) | undefined> {
  const client = await world.superuser.connect();
  client.on('error', () => {});
  await client.query(`begin; ${hold!.lock}`);
  world[who].go(point);
  const isHeld = until(
    async () =>
      (await numberOf(
        world.superuser,
        `select count(*) from pg_stat_activity
          where wait_event_type = 'Lock' and state = 'active' and query like '%${hold!.statement}(%'
            and application_name like 'masked-logins%'`,
      )) > 0,
    HELD_WITHIN_MS,
    20,
  );
  if (!(await isHeld)) {
    await letGo(client);
    return undefined;
  }
  return () => letGo(client);
}

/** The lock goes with the connection, if the server has not gone before. */
async function letGo(client: pg.PoolClient): Promise<void> {
  await client.query('rollback').catch(() => {});
  client.release(true);
}

async function beginRotation({ custodian, superuser, random }: World): Promise<void> {
  // A rotation that is under way has steps to come; only where none is, a new one begins.
  if ((await numberOf(superuser, RUNNING)) > 0) return;
  const field = random.pick(['ip', 'device_id']);
  await retried(() =>
    custodian.query(`select masking.rotate(purpose => $1, field => $2)`, [
      random.pick(['token', 'cipher']),
      field,
    ]),
  );
}

const RUNNING = `select count(*) from masking.rotations where state <> 'done'`;

/** Opens the next slot, so that the worker's next call has one to truncate. */
async function turnSlots({ superuser }: World): Promise<void> {
  const staged = `select pg_relation_size('staging.raw_messages_' || slot) from staging.slots where is_open`;
  await until(async () => (await numberOf(superuser, staged)) > 0, 20_000);
  await retried(() =>
    superuser.query(
      `update staging.slots set opened_at = now() - interval '1 hour', tried_at = null; select staging.recycle_slots()`,
    ),
  );
}

/** Takes the last month's partition away, which is empty, and asks for maintenance. */
async function dropPartition({ superuser }: World): Promise<void> {
  await retried(async () => {
    const { rows } = await superuser.query<{ name: string }>(
      `select inhrelid::regclass::text as name from pg_inherits
        where inhparent = 'public.user_logins'::regclass and inhrelid::regclass::text ~ '_[0-9]{4}_[0-9]{2}$'
        order by 1 desc limit 1`,
    );
    await superuser.query(`drop table ${rows[0]!.name}`);
    await superuser.query(
      `select graphile_worker.add_job('maintain_partitions', job_key => 'maintain_partitions')`,
    );
  });
}
