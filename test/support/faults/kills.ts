import type pg from 'pg';
import { numberOf, until } from './polling.ts';
import { retried } from './postgres-faults.ts';
import { FaultError } from './protocol.ts';
import type { World } from './world.ts';

/** A named moment in the work of loader or worker at which a process is killed. */
export interface Moment {
  name: string;
  who: 'loader' | 'worker';
  point: string;
  /** Makes the process reach this moment. Without it, traffic does. */
  provoke?: (world: World) => Promise<void>;
  /**
   * Blocks the server near the end of the statement that the process is about to send, by a lock that it needs last.
   */
  hold?: { lock: string; statement: string };
}

export const MOMENTS: readonly Moment[] = [
  { name: 'before receiving', who: 'loader', point: 'receive:before' },
  { name: 'after receiving', who: 'loader', point: 'receive:after' },
  { name: 'during COPY', who: 'loader', point: 'copy:middle' },
  { name: 'after COPY, before COMMIT', who: 'loader', point: 'commit:before' },
  { name: 'after COMMIT', who: 'loader', point: 'commit:after' },
  {
    name: 'while masking',
    who: 'worker',
    point: 'mask:before',
    // Masking updates the ledger last: everything else is written, and nothing is committed.
    hold: { lock: 'lock table staging.batches in share mode', statement: 'masking.mask_batch' },
  },
  { name: 'after masking, before deleting', who: 'worker', point: 'mask:after' },
  { name: 'between deleting and closing', who: 'worker', point: 'close:before' },
  {
    name: 'during rotation',
    who: 'worker',
    point: 'rotate:before',
    provoke: beginRotation,
    hold: { lock: 'lock table masking.rotations in share mode', statement: 'masking.rotate_step' },
  },
  {
    name: 'during partition maintenance',
    who: 'worker',
    point: 'partitions:before',
    provoke: dropPartition,
    hold: {
      lock: 'lock table public.user_logins_default in access share mode',
      statement: 'staging.maintain_partitions',
    },
  },
  {
    name: 'while truncating a slot of staging',
    who: 'worker',
    point: 'slots:before',
    provoke: closeSlot,
    hold: {
      lock: 'lock table staging.raw_messages_0, staging.raw_messages_1, staging.raw_messages_2 in access share mode',
      statement: 'staging.recycle_slots',
    },
  },
];

/** How long to wait until the statement is blocked by the lock, in milliseconds. */
const BLOCKED_WITHIN_MS = 10_000;
/** How often to try: a statement may have nothing to do, and then it takes no lock. */
const ATTEMPTS = 5;

/** Kills (`-9`) the process at a moment, or the postmaster while the process is at that moment. */
export async function killAt(world: World, moment: Moment, victim: 'process' | 'Postgres'): Promise<void> {
  const { recovery, hit } = world;
  const process = world[moment.who];
  const kind = `kill -9 of ${victim === 'process' ? `the ${moment.who}` : 'Postgres'} ${moment.name}`;
  const release = await reach(world, moment);
  if (victim === 'process') {
    const end = await process.end('SIGKILL');
    if (end !== 'SIGKILL') throw new FaultError(`the ${process.name} ended by itself: ${end}`);
  } else {
    await world.killPostgres('SIGKILL');
    process.go(moment.point);
  }
  hit(kind);
  await release?.();
  await recovery.measure(kind);
}

/** Waits until the process is at the moment. Returns a function that unblocks the server, if it is blocked. */
async function reach(world: World, moment: Moment): Promise<(() => Promise<void>) | undefined> {
  for (let attempt = 1; ; attempt += 1) {
    const reached = world[moment.who].reach(moment.point);
    await Promise.all([reached, moment.provoke?.(world), world.traffic.send(60)]);
    if (moment.hold === undefined) return undefined;
    const release = await blockServer(world, moment);
    if (release !== undefined) return release;
    // A batch that is already masked writes nothing and takes no lock: try the next one.
    if (attempt === ATTEMPTS)
      throw new FaultError(`the server never executed ${moment.hold.statement} up to the lock`);
  }
}

/** Takes the lock, and lets the process send the statement. Returns undefined if the lock does not block it. */
async function blockServer(
  world: World,
  { who, point, hold }: Moment,
): Promise<(() => Promise<void>) | undefined> {
  const client = await world.superuser.connect();
  client.on('error', () => {});
  await client.query(`begin; ${hold!.lock}`);
  world[who].go(point);
  const isBlocked = until(
    async () =>
      (await numberOf(
        world.superuser,
        `select count(*) from pg_stat_activity
          where wait_event_type = 'Lock' and state = 'active' and query like '%${hold!.statement}(%'
            and application_name like 'masked-logins%'`,
      )) > 0,
    BLOCKED_WITHIN_MS,
    20,
  );
  if (!(await isBlocked)) {
    await unlock(client);
    return undefined;
  }
  return () => unlock(client);
}

/** Releases the lock. The server may have been killed in the meantime. */
async function unlock(client: pg.PoolClient): Promise<void> {
  await client.query('rollback').catch(() => {});
  client.release(true);
}

async function beginRotation({ custodian, superuser, random }: World): Promise<void> {
  // A running rotation has more steps to kill, so a new one is only needed if none is running.
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

/** Closes the open slot, so that the worker's next call has a slot to truncate. */
async function closeSlot({ superuser }: World): Promise<void> {
  const staged = `select pg_relation_size('staging.raw_messages_' || slot) from staging.slots where is_open`;
  await until(async () => (await numberOf(superuser, staged)) > 0, 20_000);
  await retried(() =>
    superuser.query(
      `update staging.slots set opened_at = now() - interval '1 hour', tried_at = null; select staging.recycle_slots()`,
    ),
  );
}

/** Drops the partition of the last month, which is empty, and adds a maintenance job that creates it again. */
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
