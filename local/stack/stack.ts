import { mkdirSync, rmSync } from 'node:fs';
import path from 'node:path';
import type { StackFile } from './state.ts';
import type { StackLogin } from './logins.ts';
import { migrate } from '../../src/database/migrate.ts';
import type { Logger } from '../../src/log.ts';
import { writeSecretFile } from '../../src/secret-file.ts';
import { startEmulator, type Emulator } from '../sqs/emulator.ts';
import { stopLeftover } from '../postgres/leftovers.ts';
import { createMemberLogins, DATABASE, loginName, prepareDatabase, type Passwords } from './logins.ts';
import { placeForData } from '../postgres/os-user.ts';
import { startPostgres, type Postgres } from '../postgres/postgres.ts';
import { ensureKek, lockDirectory, readState, stackPaths } from './state.ts';

export interface StackOptions {
  localDir: string;
  /** Deletes the data of an earlier stack in the directory first. */
  fresh?: boolean;
  /** Keeps the queue's messages over a restart, which is the default. Otherwise they are in memory. */
  persistent?: boolean;
  /** For postgresql.conf, in addition to the settings of every stack. */
  settings?: Record<string, string>;
  log: Logger;
}

export interface Stack {
  file: StackFile;
  postgres: Postgres;
  emulator: Emulator;
  /** Stops both. The data is kept. */
  stop(): Promise<void>;
}

/**
 * Starts a Postgres and an SQS emulator, migrates, creates a login for each role, and finally writes `stack.json`. If
 * that file exists, everything is ready.
 *
 * @throws {SettingError} if a stack already runs in the directory
 * @throws {FatalError} if Postgres does not start
 */
export async function startStack(options: StackOptions): Promise<Stack> {
  const localDir = path.resolve(options.localDir);
  const paths = stackPaths(localDir);
  mkdirSync(localDir, { recursive: true });
  const undo: (() => Promise<void> | void)[] = [];
  const stop = async () => {
    for (const step of undo.splice(0).reverse()) await step();
  };
  try {
    const lock = lockDirectory(paths.lock);
    undo.push(() => lock.release());
    rmSync(paths.stack, { force: true });
    if (options.fresh) await removeData(localDir);

    const state = readState(paths.state);
    const save = () => writeSecretFile(paths.state, `${JSON.stringify(state, null, 2)}\n`);
    save();
    ensureKek(paths.kek);
    // Its messages contain addresses and device ids in the clear.
    mkdirSync(paths.queue, { recursive: true, mode: 0o700 });

    const dataDirectory = placeForData(localDir);
    const postgres = await startPostgres({
      dataDirectory,
      logFile: paths.postgresLog,
      port: state.postgresPort,
      superuserPassword: state.superuserPassword,
      ...(options.settings && { settings: options.settings }),
      onRestart: () => options.log.warn('Postgres had crashed and was restarted'),
    });
    undo.push(() => postgres.stop());
    const emulator = await startEmulator({
      port: state.emulatorPort,
      dataDirectory: options.persistent === false ? undefined : paths.queue,
    });
    undo.push(() => emulator.stop());
    state.postgresPort = postgres.port;
    state.emulatorPort = emulator.port;
    save();

    const urls = urlsOf(postgres, state.passwords);
    await prepareDatabase((database) => postgres.url(database), state.passwords);
    await migrate({ connectionString: urls.owner, log: options.log });
    await createMemberLogins((database) => postgres.url(database), state.passwords);

    const file: StackFile = {
      endpoint: emulator.endpoint,
      region: emulator.region,
      queueUrl: emulator.queueUrl,
      deadLetterQueueUrl: emulator.deadLetterQueueUrl,
      kekFile: paths.kek,
      postgresLog: paths.postgresLog,
      dataDirectory,
      urls,
    };
    writeSecretFile(paths.stack, `${JSON.stringify(file, null, 2)}\n`);
    undo.push(() => rmSync(paths.stack, { force: true }));
    return { file, postgres, emulator, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** Deletes all data of a stack that is not running. */
export async function removeData(localDir: string): Promise<void> {
  const paths = stackPaths(path.resolve(localDir));
  const dataDirectory = placeForData(localDir);
  await stopLeftover(dataDirectory);
  for (const kept of [paths.stack, paths.state, paths.kek, paths.postgresLog, paths.queue, dataDirectory]) {
    rmSync(kept, { recursive: true, force: true });
  }
  // Under /var/tmp, the data directory has a parent directory of its own.
  const around = path.dirname(dataDirectory);
  if (around !== path.resolve(localDir)) rmSync(around, { recursive: true, force: true });
}

function urlsOf(postgres: Postgres, passwords: Passwords): Record<StackLogin, string> {
  const names = Object.keys(passwords) as (keyof Passwords)[];
  const members = names.map((name) => [name, postgres.url(DATABASE, loginName(name), passwords[name])]);
  return { superuser: postgres.url(DATABASE), ...Object.fromEntries(members) };
}
