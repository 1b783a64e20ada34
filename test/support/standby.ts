import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { appendFileSync, closeSync, openSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import pg from 'pg';
import { childEnvironment } from '../../local/environment.ts';
import { findBinaries } from '../../local/postgres/binaries.ts';
import { asUser, serverUser } from '../../local/postgres/os-user.ts';
import { freePort } from '../../local/ports.ts';
import { until } from './pipeline.ts';

/** A hot standby. (`local/postgres` cannot start one: it waits until the server accepts writes.) */
export interface Standby {
  port: number;
  stop(): Promise<void>;
}

/**
 * Starts a base backup as a standby that streams from the server that it was taken from.
 *
 * @param directory the directory that `takeBaseBackup` has filled
 * @param primaryUrl connection string of a superuser on the primary
 */
export async function startStandby(directory: string, primaryUrl: string, logFile: string): Promise<Standby> {
  const { postgres } = await findBinaries();
  const primary = new URL(primaryUrl);
  const conninfo = `host=${primary.hostname} port=${primary.port} user=${primary.username} password=${primary.password}`;
  writeFileSync(path.join(directory, 'standby.signal'), '');
  appendFileSync(path.join(directory, 'postgresql.auto.conf'), `primary_conninfo = '${conninfo}'\n`);
  const port = await freePort();
  const settings = {
    port: String(port),
    listen_addresses: '127.0.0.1',
    unix_socket_directories: '',
    hot_standby: 'on',
  };
  const log = openSync(logFile, 'a', 0o600);
  const child = spawn(
    postgres,
    ['-D', directory, ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])],
    { ...asUser(serverUser()), cwd: directory, env: childEnvironment({}), stdio: ['ignore', log, log] },
  );
  closeSync(log);
  const ended = once(child, 'exit');
  const url = new URL(primaryUrl);
  url.port = String(port);
  await until(async () => {
    const client = new pg.Client({ connectionString: url.toString() });
    client.on('error', () => {});
    await client.connect();
    await client.end();
    return true;
  });
  return {
    port,
    async stop() {
      child.kill('SIGINT');
      await ended;
    },
  };
}
