import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmodSync, lchownSync, lstatSync, mkdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { FatalError } from '../../src/errors.ts';

/**
 * For files that the server's user could not reach in a checkout under /root. Unlike /tmp, it is kept over a reboot.
 */
const SHARED_PLACE = '/var/tmp';

/** The operating system's user that Postgres runs as. */
export interface OsUser {
  name: string;
  uid: number;
  gid: number;
}

/**
 * The user to run Postgres as. Postgres refuses to run as root, so for root it is `postgres` or else `nobody`. No
 * user is created.
 *
 * @returns undefined if this is not root: then Postgres runs as the same user
 * @throws {FatalError} if this is root and neither user exists
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

/** Options for `child_process` to start a program as that user. */
export function asUser(user: OsUser | undefined): { uid: number; gid: number } | Record<string, never> {
  return user === undefined ? {} : { uid: user.uid, gid: user.gid };
}

/**
 * Whether the user can reach and execute a path. The kernel decides, because modes are not enough (ACLs,
 * root-squashed mounts).
 */
export function canReach(user: OsUser, target: string): boolean {
  return spawnSync('test', ['-x', target], { ...asUser(user), cwd: '/', stdio: 'ignore' }).status === 0;
}

/**
 * The data directory of a stack: in the stack's directory, or under /var/tmp if the server's user cannot reach that
 * (root, with a checkout under /root).
 *
 * @param localDir the stack's directory, which exists
 */
export function placeForData(localDir: string): string {
  const user = serverUser();
  const absolute = path.resolve(localDir);
  if (user === undefined || canReach(user, absolute)) return path.join(absolute, 'postgres');
  const hash = createHash('sha256').update(absolute).digest('hex').slice(0, 16);
  return path.join(SHARED_PLACE, `masked-logins-${hash}`, 'postgres');
}

/**
 * Creates a directory that the server's user owns and no other user may enter.
 *
 * @throws {FatalError} if another user created its parent under /var/tmp
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

/** A path for files that all stacks of this machine share. */
export function sharedPath(name: string): string {
  return path.join(SHARED_PLACE, `masked-logins-${name}`);
}

/**
 * Checks that root created a directory in /var/tmp, where any user may create one.
 *
 * @throws {FatalError} if it is a link, not a directory, another user's, or writable by others
 */
export function requireOurs(directory: string): void {
  const status = lstatSync(directory);
  if (status.isDirectory() && status.uid === process.getuid?.() && (status.mode & 0o022) === 0) return;
  throw new FatalError(`another user created ${directory}: check it, remove it, and run this again`);
}
