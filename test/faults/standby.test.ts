import { randomBytes } from 'node:crypto';
import { readFileSync, readdirSync, statSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type pg from 'pg';
import type { StackLogin } from '../../local/stack/logins.ts';
import { isSealed, parseKek, unseal } from '../../src/database/kek.ts';
import { createPool } from '../../src/database/pool.ts';
import { startPostgres, type Postgres } from '../../local/postgres/postgres.ts';
import { takeBaseBackup } from '../support/base-backup.ts';
import type { TestDatabase } from '../support/database.ts';
import { formsOf } from '../support/forms.ts';
import {
  distinct,
  expectAllReveal,
  liftLimits,
  load,
  maskedLogins,
  request,
  reveal,
  type Login,
} from '../support/keys.ts';
import { makeTestDirectory, removeTestDirectory } from '../support/test-directory.ts';
import { startPipeline, until, type Pipeline } from '../support/pipeline.ts';
import { sqlstate } from '../support/sqlstate.ts';
import { event, mask, message, stage } from '../support/staging.ts';
import { filesHolding } from '../support/files-holding.ts';
import { startStandby, type Standby } from '../support/standby.ts';

const canary = (what: string): string => `${what}-${randomBytes(15).toString('hex')}`;
const SECRETS = {
  'ip in the vault': `fd00:${Array.from({ length: 7 }, () => `1${randomBytes(2).toString('hex').slice(1)}`).join(':')}`,
  'device in the vault': canary('device'),
  'ip in staging': canary('staged-ip'),
  'device in staging': canary('staged-device'),
  'body in quarantine': canary('body'),
};

let pipeline: Pipeline;
let kek: Buffer;
let testDirectory: string;
let primary: TestDatabase;
let sent: Map<string, Login>;
const databases: TestDatabase[] = [];

/** The stack's database on a server at this port, for the helpers of other tests. */
function databaseAt(port: number): TestDatabase {
  const at = (login: StackLogin) => {
    const url = new URL(pipeline.stack.file.urls[login]);
    url.port = String(port);
    return url.toString();
  };
  const pools = new Map<StackLogin, pg.Pool>();
  const pool = (login: StackLogin): pg.Pool => {
    const known = pools.get(login) ?? createPool(at(login), { max: 4, applicationName: `test ${login}` });
    pools.set(login, known);
    return known;
  };
  const database: TestDatabase = {
    name: 'masked_logins',
    urls: Object.fromEntries(
      Object.keys(pipeline.stack.file.urls).map((login) => [login, at(login as StackLogin)]),
    ) as TestDatabase['urls'],
    superuser: pool('superuser'),
    kek,
    pool,
    async drop() {
      await Promise.all([...pools.values()].map((each) => each.end()));
    },
  };
  databases.push(database);
  return database;
}

beforeAll(async () => {
  pipeline = await startPipeline();
  kek = parseKek(readFileSync(pipeline.stack.file.kekFile, 'utf8'), 'the file');
  testDirectory = makeTestDirectory();
  primary = databaseAt(pipeline.stack.postgres.port);
  await unseal(primary.pool('worker'), kek);
  await liftLimits(primary);
  sent = await load(primary, [
    { user: 'ann', ip: SECRETS['ip in the vault'], device: SECRETS['device in the vault'] },
    { user: 'bob', ip: '10.0.0.1', device: 'device' },
  ]);
  await mask(primary, await stage(primary, [message(`{"ip": "${SECRETS['body in quarantine']}"`)]));
  // Staged but never masked.
  await stage(primary, [
    message(event({ ip: SECRETS['ip in staging'], device_id: SECRETS['device in staging'] })),
  ]);
  await primary.superuser.query('analyze');
  // A checkpoint leaves unlogged tables in memory. A clean restart writes them to disk.
  const before = pipeline.stack.postgres.pid();
  pipeline.stack.postgres.kill('SIGINT');
  await until(async () => {
    await primary.superuser.query('select');
    return pipeline.stack.postgres.pid() !== before;
  });
});
afterAll(async () => {
  await Promise.all(databases.map((database) => database.drop()));
  await pipeline.stop();
  await removeTestDirectory(testDirectory);
});

const allForms = () => [kek, ...Object.values(SECRETS)].flatMap((secret) => formsOf(secret));
const expectSealed = async (db: TestDatabase, requestId: string) => {
  expect(await isSealed(db.pool('custodian'))).toBe(true);
  expect(await sqlstate(reveal(db, requestId))).toBe('ML001');
};
const requestAll = async (db: TestDatabase) =>
  request(db, 'ip', distinct((await maskedLogins(db)).map(({ ip }) => ip)));
/** The main file of a relation, if it is not empty. */
const contentsOf = (directory: string, file: string) => {
  const folder = path.join(directory, path.dirname(file));
  const name = path.basename(file);
  return readdirSync(folder).filter((each) => each === name && statSync(path.join(folder, each)).size > 0);
};
const fileOf = async (relation: string): Promise<string> =>
  (await primary.superuser.query('select pg_relation_filepath($1::regclass) as file', [relation])).rows[0]
    .file;

test('the search finds the key and a staged address in the unlogged tables of the server itself', async () => {
  const directory = pipeline.stack.file.dataDirectory;
  expect(await isSealed(primary.pool('worker'))).toBe(false);
  expect(filesHolding(directory, formsOf(kek))).toEqual([await fileOf('masking.kek')]);
  expect(filesHolding(directory, formsOf(SECRETS['ip in staging']))).toEqual([
    await fileOf('staging.raw_messages_0'),
  ]);
});

describe('a server restored from a base backup', () => {
  let directory: string;
  let server: Postgres | undefined;
  let db: TestDatabase;
  let earlier: string;
  beforeAll(async () => {
    directory = path.join(testDirectory, 'restored');
    earlier = await requestAll(primary);
    await takeBaseBackup(pipeline.stack.file.urls.superuser, directory);
  });
  afterAll(() => server?.stop());

  test('the backup contains the vault, but neither the key-encryption key nor anything in the clear', async () => {
    expect(contentsOf(directory, await fileOf('masking.vault'))).toHaveLength(1);
    expect(contentsOf(directory, await fileOf('masking.kek'))).toEqual([]);
    expect(contentsOf(directory, await fileOf('staging.raw_messages'))).toEqual([]);
    expect(filesHolding(directory, allForms())).toEqual([]);
  });

  test('is sealed when it starts: masking fails, and neither an old nor a new request reveals anything', async () => {
    server = await startPostgres({
      dataDirectory: directory,
      logFile: path.join(testDirectory, 'restored.log'),
      superuserPassword: '',
    });
    db = databaseAt(server.port);
    expect(await maskedLogins(db)).toHaveLength(2);
    await expectSealed(db, earlier);
    await expectSealed(db, await requestAll(db));
    expect(await sqlstate(mask(db, await stage(db, [message()])))).toBe('ML001');
    expect((await db.superuser.query('select from masking.kek')).rowCount).toBe(0);
  });

  test('is not unsealed by another key', async () => {
    expect(await sqlstate(unseal(db.pool('worker'), randomBytes(32)))).toBe('ML002');
    await expectSealed(db, earlier);
  });

  test('reveals everything once it is unsealed, for old and new requests', async () => {
    await unseal(db.pool('worker'), kek);
    await expectAllReveal(db, sent);
    expect([...(await reveal(db, earlier)).values()].sort()).toEqual(
      [...sent.values()].map(({ ip }) => ip).sort(),
    );
  });
});

describe('a standby', () => {
  let directory: string;
  let standby: Standby | undefined;
  let db: TestDatabase;
  let earlier: string;
  beforeAll(async () => {
    directory = path.join(testDirectory, 'standby');
    await takeBaseBackup(pipeline.stack.file.urls.superuser, directory);
    standby = await startStandby(
      directory,
      pipeline.stack.file.urls.superuser,
      path.join(testDirectory, 'standby.log'),
    );
    db = databaseAt(standby.port);
    for (const [id, login] of await load(primary, [{ user: 'cyd', ip: '10.0.0.3', device: 'streamed' }]))
      sent.set(id, login);
    earlier = await requestAll(primary);
    await until(async () => (await maskedLogins(db)).length === sent.size);
    await until(
      async () =>
        (await db.superuser.query('select from unmask.requests where request_id = $1', [earlier]))
          .rowCount === 1,
    );
  });
  afterAll(() => standby?.stop());

  test('can be read by analysts, except for unlogged tables, which not even a superuser can read', async () => {
    expect((await maskedLogins(db)).map(({ user }) => user).sort()).toEqual(['ann', 'bob', 'cyd']);
    for (const table of ['masking.kek', 'staging.raw_messages']) {
      expect(await sqlstate(db.superuser.query(`select * from ${table}`))).toBe('0A000');
    }
  });

  test('refuses to request, to reveal and to unseal', async () => {
    expect(await sqlstate(requestAll(db))).toBe('25006');
    expect(await sqlstate(db.pool('unmasker').query('select * from unmask.reveal($1)', [earlier]))).toBe(
      '25006',
    );
    expect(await sqlstate(unseal(db.pool('worker'), kek))).toBe('25006');
    expect(await sqlstate(db.pool('custodian').query('select masking.is_sealed()'))).toBe('0A000');
    expect(await sqlstate(db.superuser.query('select masking.unwrapped(wrapped) from masking.keys'))).toBe(
      '0A000',
    );
  });

  test('has neither the key-encryption key nor anything in the clear in its files', async () => {
    await db.superuser.query('checkpoint');
    expect(contentsOf(directory, await fileOf('masking.vault'))).toHaveLength(1);
    expect(filesHolding(directory, allForms())).toEqual([]);
  });

  test('is sealed after promotion, and reveals everything once it is unsealed', async () => {
    await db.superuser.query('select pg_promote()');
    await expectSealed(db, earlier);
    await expectSealed(db, await requestAll(db));
    expect(filesHolding(directory, allForms())).toEqual([]);
    await unseal(db.pool('worker'), kek);
    await expectAllReveal(db, sent);
    expect([...(await reveal(db, earlier)).values()].sort()).toEqual(
      [...sent.values()].map(({ ip }) => ip).sort(),
    );
  });
});
