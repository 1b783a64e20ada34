/** What the wrong set-ups are set up with: everything right, to be spoilt in one place each. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import pg from 'pg';
import { inject } from 'vitest';
import type { StackLogin } from '../../local/stack/logins.ts';
import { loginName } from '../../local/stack/logins.ts';
import { REGION, startQueue, type TestQueue } from '../load/loader.ts';
import { refusal, startFakeSqs, type FakeSqs } from '../queue/fake-sqs.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { startFakePostgres } from './fake-postgres.ts';

/** As whom each command runs where nothing else is said. */
export const LOGINS: Record<string, StackLogin> = {
  load: 'loader',
  worker: 'worker',
  status: 'auditor',
  keys: 'custodian',
  migrate: 'owner',
  send: 'loader',
  stack: 'superuser',
};

export interface World {
  db: TestDatabase;
  sealed: TestDatabase;
  /** Connection strings of the owner for databases that are not migrated. */
  notMigrated: string;
  notUtf8: string;
  tooOld: string;
  sqs: TestQueue;
  /** A file with the key-encryption key of `db`, one with something else, and names of files that are not there. */
  files: Record<'kek' | 'noKek' | 'missing', string>;
  /** A directory with a `stack.json` that is none. */
  brokenStack: string;
  /** Environment in which everything is right. */
  right: (login: StackLogin) => Record<string, string>;
  /** The login's connection string for `db`, spoilt. */
  url: (login: StackLogin, spoil: (url: URL) => void) => string;
  /** The queue as seen through an SQS that refuses everything so. */
  refusing: (type: string, status?: number) => Promise<Record<string, string>>;
  stop: () => Promise<void>;
}

export async function startWorld(): Promise<World> {
  const [db, sealed] = [await createTestDatabase(), await createTestDatabase()];
  await sealed.pool('custodian').query('select masking.seal()');
  const [sqs, tooOld] = await Promise.all([startQueue(), startFakePostgres(150_004)]);
  const fakes: FakeSqs[] = [];
  const directory = mkdtempSync(path.join(tmpdir(), 'masked-logins-set-ups-'));
  const files = {
    kek: path.join(directory, 'kek'),
    noKek: path.join(directory, 'no-kek'),
    missing: path.join(directory, 'missing'),
  };
  writeFileSync(files.kek, db.kek.toString('hex'));
  writeFileSync(files.noKek, 'opensesame');
  writeFileSync(path.join(directory, 'stack.json'), '{"urls":{"loader":"postgres://u:opensesame@h/d"');
  const others = [`${db.name}_empty`, `${db.name}_latin1`] as const;
  await asSuperuser(async (client) => {
    await client.query(`create database ${others[0]}`);
    await client.query(`create database ${others[1]} encoding 'LATIN1' locale 'C' template template0`);
    for (const name of others)
      await client.query(`grant create on database ${name} to ${loginName('owner')}`);
  });
  const url: World['url'] = (login, spoil) => {
    const spoilt = new URL(db.urls[login]);
    spoil(spoilt);
    return spoilt.toString();
  };
  const named = (name: string) => url('owner', (spoilt) => (spoilt.pathname = `/${name}`));

  return {
    db,
    sealed,
    notMigrated: named(others[0]),
    notUtf8: named(others[1]),
    tooOld: tooOld.url,
    sqs,
    files,
    brokenStack: directory,
    url,
    right: (login) => ({
      DATABASE_URL: db.urls[login],
      ...queueVariables(sqs.queue.url, sqs.queue.endpoint!),
      ...(login === 'worker' && { MASKING_KEK: db.kek.toString('hex') }),
    }),
    async refusing(type, status = 403) {
      const fake = await startFakeSqs(() => refusal(type, status));
      fakes.push(fake);
      return queueVariables(fake.queue.url, fake.queue.endpoint!);
    },
    async stop() {
      tooOld.stop();
      await Promise.all([sqs.stop(), ...fakes.map((fake) => fake.stop())]);
      await Promise.all([db.drop(), sealed.drop()]);
      await asSuperuser(async (client) => {
        for (const name of others) await client.query(`drop database if exists ${name} with (force)`);
      });
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

function queueVariables(queueUrl: string, endpoint: string): Record<string, string> {
  return {
    SQS_QUEUE_URL: queueUrl,
    AWS_ENDPOINT_URL_SQS: endpoint,
    AWS_REGION: REGION,
    AWS_ACCESS_KEY_ID: 'AKIAOPENSESAME',
    AWS_SECRET_ACCESS_KEY: 'opensesame-aws',
    // Nothing of this machine's own.
    AWS_CONFIG_FILE: '/nowhere',
    AWS_SHARED_CREDENTIALS_FILE: '/nowhere',
    AWS_EC2_METADATA_DISABLED: 'true',
    // A load that waits for what does not come back ends soon.
    LOAD_RETRY_TIMEOUT_SECONDS: '1',
    SQS_WAIT_TIME_SECONDS: '1',
  };
}

async function asSuperuser(use: (client: pg.Client) => Promise<void>): Promise<void> {
  const client = new pg.Client({ connectionString: inject('superuserUrl') });
  await client.connect();
  await use(client).finally(() => client.end());
}
