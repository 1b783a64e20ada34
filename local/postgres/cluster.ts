import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rename, rm, writeFile, chown } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import { childEnvironment } from '../environment.ts';
import { FatalError } from '../../src/errors.ts';
import type { PostgresBinaries } from './binaries.ts';
import { asUser, makePrivateDirectory, serverUser, type OsUser } from './os-user.ts';

/** The superuser of each cluster. */
export const SUPERUSER = 'postgres';

/**
 * Creates a database cluster if there is none: UTF-8, a locale that sorts the same on every machine, passwords for all
 * logins.
 *
 * @throws {FatalError} if `initdb` fails, with its message
 */
export async function initialiseCluster(
  binaries: PostgresBinaries,
  dataDirectory: string,
  superuserPassword: string,
): Promise<void> {
  if (existsSync(path.join(dataDirectory, 'PG_VERSION'))) return;
  const user = serverUser();
  // Created under another name and renamed, so that an interrupted run never leaves an incomplete cluster.
  const aside = `${dataDirectory}.new`;
  await rm(aside, { recursive: true, force: true });
  makePrivateDirectory(aside, user);
  await withPasswordFile(superuserPassword, user, async (passwordFile) => {
    const initdb = spawn(
      binaries.initdb,
      [
        `--pgdata=${aside}`,
        `--username=${SUPERUSER}`,
        `--pwfile=${passwordFile}`,
        '--auth=scram-sha-256',
        '--encoding=UTF8',
        '--locale=C',
        '--no-instructions',
      ],
      { ...asUser(user), cwd: aside, env: childEnvironment({}), stdio: ['ignore', 'ignore', 'pipe'] },
    );
    const exited = new Promise<boolean>((resolve) => {
      initdb.once('error', () => resolve(false));
      initdb.once('exit', (code) => resolve(code === 0));
    });
    const stderr = await text(initdb.stderr);
    if (!(await exited)) throw new FatalError(`initdb could not create a cluster: ${stderr.trim()}`);
  });
  await rm(dataDirectory, { recursive: true, force: true });
  await rename(aside, dataDirectory);
}

/** Writes the password into a file that only the server's user can read, until `use` is done. */
async function withPasswordFile(
  password: string,
  user: OsUser | undefined,
  use: (file: string) => Promise<void>,
): Promise<void> {
  const directory = await mkdtemp(path.join(tmpdir(), 'masked-logins-'));
  const file = path.join(directory, 'password');
  try {
    await writeFile(file, password, { mode: 0o600 });
    if (user !== undefined) {
      await chown(file, user.uid, user.gid);
      await chown(directory, user.uid, user.gid);
    }
    await use(file);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
