import { execFile, execFileSync } from 'node:child_process';
import { appendFileSync, chownSync, mkdirSync, rmSync, statfsSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { serverUser } from '../../../local/postgres/os-user.ts';
import { numberOf, until } from './asking.ts';
import { retried } from './postgres-faults.ts';
import { FaultError } from './protocol.ts';
import type { World } from './world.ts';

const PIECE = Buffer.alloc(64 * 1_024);
const run = promisify(execFile);

const TABLES = `
  select c.oid::regclass::text as name from pg_class c
   where c.relkind = 'r' and (c.relname like 'raw\\_messages%' or c.relname like 'user\\_logins\\_%' or c.relname = 'vault')`;

/**
 * Fills the disk under staging, vault and logins: a tablespace on a tmpfs of some MiB, and a file that takes what is
 * left. What Postgres then says is the kernel's ENOSPC. WAL and ledger are on another disk. Only root may mount.
 */
export async function fillRealDisk(world: World): Promise<void> {
  const kind = 'disk full (ENOSPC of a tmpfs)';
  if (process.getuid?.() !== 0) {
    world.skipped.push(`${kind}: only root may mount one`);
    return;
  }
  const { superuser } = world;
  const place = world.disk ?? (await makeDisk(world));
  world.disk = place;
  const ballast = path.join(place, 'ballast');
  const refused = () => world.serverLogCount('No space left on device');
  const before = refused();
  await fill(place, ballast);
  // Room that the files have already, and that no row has taken, is not the disk's.
  const isStruck = await until(
    async () => {
      await world.traffic.send(100);
      return refused() >= before + 2;
    },
    90_000,
    500,
  );
  rmSync(ballast);
  if (!isStruck) throw new FaultError('nothing was written while the disk was full');
  world.hit(kind, refused() - before);
  await until(async () => (await numberOf(superuser, 'select 1')) === 1);
  await world.recovery.measure(kind);
}

async function makeDisk({ superuser, atEnd, localDir, diskMiB }: World): Promise<string> {
  const place = path.join(localDir, 'small-disk');
  mkdirSync(place);
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${diskMiB}m,mode=0711`, 'tmpfs', place]);
  // Also where somebody ends the run: the server, which still has files open there, ends a moment later.
  const unmount = (): void => void execFileSync('umount', ['--lazy', place]);
  process.once('exit', unmount);
  atEnd.push(() => {
    process.off('exit', unmount);
    unmount();
  });
  const data = path.join(place, 'data');
  mkdirSync(data);
  const user = serverUser();
  if (user !== undefined) chownSync(data, user.uid, user.gid);
  await retried(() => superuser.query(`create tablespace small_disk location '${data}'`));
  const { rows } = await superuser.query<{ name: string }>(TABLES);
  for (const { name } of rows)
    await retried(() => superuser.query(`alter table ${name} set tablespace small_disk`));
  return place;
}

/** By a process of its own: the queue lives in this one, and is not to stand still. */
async function fill(place: string, ballast: string): Promise<void> {
  const { bavail, bsize } = statfsSync(place);
  await run('fallocate', ['-l', String(bavail * bsize), ballast]).catch(() => {});
  try {
    // Somebody may have needed less than was thought.
    for (;;) appendFileSync(ballast, PIECE);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
  }
}
