import { spawn } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import pg from 'pg';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { childEnvironment } from '../../local/environment.ts';
import { placeForData } from '../../local/postgres/os-user.ts';
import { startPostgres, type Postgres } from '../../local/postgres/postgres.ts';
import { makeTestDirectory, removeTestDirectory } from '../support/test-directory.ts';

let place: string;
let postgres: Postgres;
let restarted: PromiseWithResolvers<void>;

beforeEach(async () => {
  place = makeTestDirectory();
  postgres = await start();
});

afterEach(async () => {
  await postgres.stop();
  await removeTestDirectory(place);
});

function start(port?: number): Promise<Postgres> {
  restarted = Promise.withResolvers();
  return startPostgres({
    dataDirectory: placeForData(place),
    logFile: path.join(place, 'postgres.log'),
    superuserPassword: 'test',
    port,
    onRestart: () => restarted.resolve(),
  });
}

/** Runs statements in a session of their own; the last one's rows. */
async function query(sql: string): Promise<unknown[]> {
  const client = new pg.Client({ connectionString: postgres.url('postgres') });
  client.on('error', () => {});
  await client.connect();
  try {
    return (await client.query(sql)).rows;
  } finally {
    await client.end();
  }
}

async function killAndAwaitRestart(): Promise<void> {
  restarted = Promise.withResolvers();
  postgres.kill('SIGKILL');
  await restarted.promise;
}

describe('the embedded Postgres', () => {
  test('comes back on the same port with its data after every SIGKILL', async () => {
    const { port } = postgres;
    await query('create table survivors (n int)');
    for (let n = 0; n < 3; n += 1) {
      const pid = postgres.pid();
      await query(`insert into survivors values (${n})`);
      await killAndAwaitRestart();
      expect(postgres.pid()).not.toBe(pid);
    }
    expect(postgres.port).toBe(port);
    expect(await query('select n from survivors order by n')).toEqual([{ n: 0 }, { n: 1 }, { n: 2 }]);
  });

  test('comes back although a backend of the killed one is too busy to notice', async () => {
    const busy = query('select count(*) from generate_series(1, 10000000000)').catch(
      () => 'lost its connection',
    );
    await expect
      .poll(() =>
        query("select from pg_stat_activity where state = 'active' and query like '%generate\\_series%'"),
      )
      .toHaveLength(1);
    await killAndAwaitRestart();
    expect(await busy).toBe('lost its connection');
    expect(await query('select 1 as one')).toEqual([{ one: 1 }]);
  });

  test('keeps data and port over a stop and a start', async () => {
    await query('create table kept as select 42 as answer');
    const { port } = postgres;
    await postgres.stop();
    postgres = await start(port);
    expect(postgres.port).toBe(port);
    expect(await query('select answer from kept')).toEqual([{ answer: 42 }]);
  });

  test('is durable, UTF-8, asks for passwords and listens on this machine alone', async () => {
    const [settings] = await query(`
      select current_setting('fsync') as fsync, current_setting('full_page_writes') as full_page_writes,
             current_setting('server_encoding') as encoding, current_setting('listen_addresses') as addresses,
             current_setting('unix_socket_directories') as sockets`);
    expect(settings).toEqual({
      fsync: 'on',
      full_page_writes: 'on',
      encoding: 'UTF8',
      addresses: '127.0.0.1',
      sockets: '',
    });
    const stranger = new pg.Client({ connectionString: postgres.url('postgres', 'postgres', 'wrong') });
    await expect(stranger.connect()).rejects.toMatchObject({ code: '28P01' });
  });

  test('stops one that an earlier process left running, and takes over its data', async () => {
    await query('create table kept as select 42 as answer');
    await postgres.stop();
    const starter = spawn(
      process.execPath,
      ['--input-type=module', '--eval', STARTER, placeForData(place), place],
      {
        env: childEnvironment({}),
        stdio: ['ignore', 'pipe', 'inherit'],
      },
    );
    const [pid] = (await once(starter.stdout, 'data')) as [Buffer];
    starter.kill('SIGKILL');
    await once(starter, 'exit');
    expect(process.kill(Number(pid), 0)).toBe(true);
    postgres = await start();
    expect(postgres.pid()).not.toBe(Number(pid));
    expect(await query('select answer from kept')).toEqual([{ answer: 42 }]);
  });
});

/** Starts a server and prints its process id. */
const STARTER = `
  import { startPostgres } from '${path.join(import.meta.dirname, '../../local/postgres/postgres.ts')}';
  const [dataDirectory, place] = process.argv.slice(1);
  const postgres = await startPostgres({ dataDirectory, logFile: place + '/postgres.log', superuserPassword: 'test' });
  console.log(postgres.pid());
`;
