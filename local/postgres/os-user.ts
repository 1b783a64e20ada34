import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmodSync, lchownSync, lstatSync, mkdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { FatalError } from '../../src/errors.ts';

/** Where things go that a checkout under /root would hide from the server's user; unlike /tmp it outlives a reboot. */
const SHARED_PLACE = '/var/tmp';

/** The user of the operating system that Postgres runs as. */
export interface OsUser {
  name: string;
  uid: number;
  gid: number;
}

/**
 * The user to run Postgres as: Postgres refuses to run as root, so root lends it `postgres` or else `nobody`.
 * Users are looked up and never made.
 *
 * @returns undefined where we are not root and Postgres simply runs as ourselves
 * @throws {FatalError} where we are root and there is neither user
 */
export function serverUser(): OsUser | undefined {
  if (process.getuid?.() !== 0) return undefined;
  const users = readFileSync('/etc/passwd', 'utf8').split('\n');
  for (const wanted of ['postgres', 'nobody']) {
    const [name, , uid, gid] = users.find((line) => line.startsWith(`${wanted}:`))?.split(':') ?? [];
    if (name !== undefined) return { name, uid: Number(uid), gid: Number(gid) };
  }
  throw new FatalError(
    'Postgres refuses to run as root, and there is no user postgres or nobody to run it as: run this as an ordinary user',
  );
}

/** What `child_process` needs to start something as that user. */
export function asUser(user: OsUser | undefined): { uid: number; gid: number } | Record<string, never> {
  return user === undefined ? {} : { uid: user.uid, gid: user.gid };
}

/** Whether the user gets to a path. Asked of the kernel, as modes alone do not tell (ACLs, root-squashed mounts). */
export function canReach(user: OsUser, target: string): boolean {
  return spawnSync('test', ['-x', target], { ...asUser(user), cwd: '/', stdio: 'ignore' }).status === 0;
}

/**
 * The data directory for a stack: inside its own directory, or under /var/tmp where the server's user cannot
 * get into that one (root, with a checkout under /root).
 *
 * @param localDir the stack's directory; it exists
 */
export function placeForData(localDir: string): string {
  const user = serverUser();
  const absolute = path.resolve(localDir);
  if (user === undefined || canReach(user, absolute)) return path.join(absolute, 'postgres');
  const hash = createHash('sha256').update(absolute).digest('hex').slice(0, 16);
  return path.join(SHARED_PLACE, `masked-logins-${hash}`, 'postgres');
}

/**
 * Makes a directory that the server's user owns and nobody else may enter.
 *
 * @throws {FatalError} where its parent under /var/tmp was made by somebody else
 */
export function makePrivateDirectory(directory: string, user: OsUser | undefined): void {
  const parent = path.dirname(directory);
  if (user !== undefined && path.dirname(parent) === SHARED_PLACE) {
    mkdirSync(parent, { recursive: true, mode: 0o711 });
    requireOurs(parent);
    chmodSync(parent, 0o711);
  }
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  chmodSync(directory, 0o700);
  if (user !== undefined) lchownSync(directory, user.uid, user.gid);
}

/** The path for something that all stacks of this machine share, under a name that says whose it is. */
export function sharedPath(name: string): string {
  return path.join(SHARED_PLACE, `masked-logins-${name}`);
}

/**
 * Anybody may make a directory in /var/tmp, so what we find there is used only when root made it.
 *
 * @throws {FatalError} where it is a link, no directory, another user's, or writable by others
 */
export function requireOurs(directory: string): void {
  const status = lstatSync(directory);
  if (status.isDirectory() && status.uid === process.getuid?.() && (status.mode & 0o022) === 0) return;
  throw new FatalError(`${directory} was made by somebody else: look at it, remove it, and run this again`);
}
