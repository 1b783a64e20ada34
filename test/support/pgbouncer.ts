import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chownSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { inject } from 'vitest';
import { loginName } from '../../local/stack/logins.ts';
import { asUser, serverUser } from '../../local/postgres/os-user.ts';
import { freePort } from '../../local/ports.ts';
import { until } from './pipeline.ts';

/** A PgBouncer before the tests' cluster. */
export interface PgBouncer {
  /** Returns the connection string that goes through PgBouncer instead of to the cluster directly. */
  through(url: string): string;
  stop(): Promise<void>;
}

/** The path of PgBouncer, or undefined if this machine does not have it. (npm cannot install it.) */
export function findPgBouncer(): string | undefined {
  try {
    return execFileSync('sh', ['-c', 'PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v pgbouncer'], {
      encoding: 'utf8',
    }).trim();
  } catch {
    return undefined;
  }
}

export async function startPgBouncer(
  binary: string,
  mode: 'session' | 'transaction',
  settings: Record<string, string> = {},
): Promise<PgBouncer> {
  const directory = mkdtempSync(path.join(tmpdir(), 'masked-logins-pgbouncer-'));
  const superuser = new URL(inject('superuserUrl'));
  const port = await freePort();
  const logins = Object.entries(inject('passwords')).map(([name, password]) => [
    loginName(name as Parameters<typeof loginName>[0]),
    password,
  ]);
  const users = path.join(directory, 'users');
  writeFileSync(users, logins.map(([name, password]) => `"${name}" "${password}"\n`).join(''));
  const config = path.join(directory, 'pgbouncer.ini');
  const all = {
    listen_addr: '127.0.0.1',
    listen_port: String(port),
    unix_socket_dir: '',
    auth_type: 'scram-sha-256',
    auth_file: users,
    pool_mode: mode,
    ...settings,
  };
  writeFileSync(
    config,
    `[databases]\n* = host=${superuser.hostname} port=${superuser.port}\n[pgbouncer]\n` +
      Object.entries(all)
        .map(([name, value]) => `${name} = ${value}\n`)
        .join(''),
  );
  // PgBouncer refuses to run as root.
  const user = serverUser();
  if (user !== undefined) for (const file of [directory, users, config]) chownSync(file, user.uid, user.gid);
  const child = spawn(binary, ['-q', config], { ...asUser(user), cwd: directory, stdio: 'ignore' });
  const ended = once(child, 'exit');
  await until(() => accepts(port), 10_000);
  return {
    through(url) {
      const through = new URL(url);
      through.port = String(port);
      return through.toString();
    },
    async stop() {
      child.kill('SIGKILL');
      await ended;
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}
