import { execFile, execFileSync } from 'node:child_process';
import { appendFileSync, chownSync, mkdirSync, rmSync, statfsSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { serverUser } from '../../../local/postgres/os-user.ts';
import { numberOf, until } from './polling.ts';
import { retried } from './postgres-faults.ts';
import { FaultError } from './protocol.ts';
import type { World } from './world.ts';

const CHUNK = Buffer.alloc(64 * 1_024);
const run = promisify(execFile);

const TABLES = `
  select c.oid::regclass::text as name from pg_class c
   where c.relkind = 'r' and (c.relname like 'raw\\_messages%' or c.relname like 'user\\_logins\\_%' or c.relname = 'vault')`;

/**
 * Fills the disk that holds staging, vault and logins, so that the kernel returns ENOSPC to Postgres. The disk is a
 * tablespace on a small tmpfs; a file takes its free space. WAL and ledger are on another disk. Only root may mount.
 */
export async function fillRealDisk(world: World): Promise<void> {
  const kind = 'disk full (ENOSPC on a tmpfs)';
  if (process.getuid?.() !== 0) {
    world.skipped.push(`${kind}: only root may mount a tmpfs`);
    return;
  }
  const { superuser } = world;
  const directory = world.disk ?? (await makeDisk(world));
  world.disk = directory;
  const ballast = path.join(directory, 'ballast');
  const refused = () => world.serverLogCount('No space left on device');
  const before = refused();
  await fill(directory, ballast);
  // The first rows may still fit into free space within the existing files.
  const isHit = await until(
    async () => {
      await world.traffic.send(100);
      return refused() >= before + 2;
    },
    90_000,
    500,
  );
  rmSync(ballast);
  if (!isHit) throw new FaultError('nothing was written while the disk was full');
  world.hit(kind, refused() - before);
  await until(async () => (await numberOf(superuser, 'select 1')) === 1);
  await world.recovery.measure(kind);
}

async function makeDisk({ superuser, atEnd, localDir, diskMiB }: World): Promise<string> {
  const directory = path.join(localDir, 'small-disk');
  mkdirSync(directory);
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${diskMiB}m,mode=0711`, 'tmpfs', directory]);
  // Also if the run is aborted. The server still has files open there and ends a moment later, hence --lazy.
  const unmount = (): void => void execFileSync('umount', ['--lazy', directory]);
  process.once('exit', unmount);
  atEnd.push(() => {
    process.off('exit', unmount);
    unmount();
  });
  const data = path.join(directory, 'data');
  mkdirSync(data);
  const user = serverUser();
  if (user !== undefined) chownSync(data, user.uid, user.gid);
  await retried(() => superuser.query(`create tablespace small_disk location '${data}'`));
  const { rows } = await superuser.query<{ name: string }>(TABLES);
  for (const { name } of rows)
    await retried(() => superuser.query(`alter table ${name} set tablespace small_disk`));
  return directory;
}

/** Fills the disk mostly in a child process: this process runs the queue, which must not stop. */
async function fill(directory: string, ballast: string): Promise<void> {
  const { bavail, bsize } = statfsSync(directory);
  await run('fallocate', ['-l', String(bavail * bsize), ballast]).catch(() => {});
  try {
    // Fills what is still free.
    for (;;) appendFileSync(ballast, CHUNK);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
  }
}
