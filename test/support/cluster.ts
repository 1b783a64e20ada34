/**
 * vitest's global setup: one embedded Postgres with a migrated database that each test file copies.
 *
 * Set TEST_DATABASE_URL to a superuser of another cluster (a Postgres 16, say) to test there instead.
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
} from '../../src/local/logins.ts';
import { placeForData } from '../../src/local/os-user.ts';
import { startPostgres } from '../../src/local/postgres.ts';
import { createLogger } from '../../src/log.ts';
import { makePlace, removePlace } from './place.ts';

declare module 'vitest' {
  export interface ProvidedContext {
    superuserUrl: string;
    passwords: Passwords;
    postgresLog: string;
  }
}

/** No personal data is in a test, and what a test provokes should be in the log where the leak scan looks. */
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
  const directory = makePlace();
  const passwords = randomPasswords();
  const given = process.env['TEST_DATABASE_URL'];
  const postgresLog = path.join(directory, 'postgres.log');
  const postgres =
    given === undefined
      ? await startPostgres({
          dataDirectory: placeForData(directory),
          logFile: postgresLog,
          superuserPassword: 'test',
          settings: SETTINGS,
        })
      : undefined;
  const superuserUrl = given ?? postgres!.url('postgres');

  const url = (database: string) => {
    const target = new URL(superuserUrl);
    target.pathname = `/${database}`;
    return target.toString();
  };
  await prepareDatabase(url, passwords);
  const owner = new URL(url(DATABASE));
  owner.username = 'local_owner';
  owner.password = passwords.owner;
  await migrate({ connectionString: owner.toString(), log: createLogger('warn') });
  await createMemberLogins(url, passwords);

  project.provide('superuserUrl', superuserUrl);
  project.provide('passwords', passwords);
  project.provide('postgresLog', postgresLog);
  return async () => {
    await postgres?.stop();
    await removePlace(directory);
  };
}
