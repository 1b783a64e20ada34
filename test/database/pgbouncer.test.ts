import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { unseal } from '../../src/database/kek.ts';
import { migrate } from '../../src/database/migrate.ts';
import { createPool } from '../../src/database/pool.ts';
import { databaseAt } from '../../src/database/url.ts';
import { FatalError } from '../../src/errors.ts';
import { runLoader } from '../../src/load/run.ts';
import { createLogger } from '../../src/log.ts';
import { runWorker, runWorkerOnce } from '../../src/work/worker.ts';
import { workerOptions } from '../work/options.ts';
import { createTestDatabase, databaseNamed, type TestDatabase } from '../support/database.ts';
import { createFreshDatabase, type FreshDatabase } from '../support/fresh-database.ts';
import { findPgBouncer, startPgBouncer, type PgBouncer } from '../support/pgbouncer.ts';
import { optionsFor, settingsWith, startQueue, type TestQueue } from '../load/loader.ts';

const log = createLogger('silent');
const binary = findPgBouncer();

// Skipped if PgBouncer is not installed. Debian's package is named pgbouncer.
describe.skipIf(binary === undefined)('through PgBouncer', () => {
  let db: TestDatabase;
  let sqs: TestQueue;
  let bouncer: PgBouncer;
  let fresh: FreshDatabase | undefined;

  const throughBouncer = () =>
    workerOptions(db, {
      settings: { ...settingsWith(), kek: { text: db.kek.toString('hex') } },
      database: databaseAt(bouncer.through(db.urls.worker)),
      queue: sqs.queue,
    });
  const loaderUrl = () => databaseAt(bouncer.through(db.urls.loader)).url;
  const advisoryLocks = async () =>
    (
      await fresh!.superuser.query(
        `select from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = $1)`,
        [fresh!.name],
      )
    ).rowCount;
  const schemas = async () =>
    (
      await fresh!.superuser.query(
        `select from pg_namespace where nspname in ('crypto', 'staging', 'graphile_migrate')`,
      )
    ).rowCount;

  beforeAll(async () => {
    db = await createTestDatabase({ sealed: true });
    sqs = await startQueue();
  });
  afterAll(async () => {
    await sqs.stop();
    await db.drop();
  });
  afterEach(async () => {
    await bouncer.stop();
    await fresh?.drop();
    fresh = undefined;
  });

  describe('in session mode', () => {
    test('migrating, loading and masking work', async () => {
      bouncer = await startPgBouncer(binary!, 'session');
      fresh = await createFreshDatabase();
      const connectionString = bouncer.through(fresh.migratorUrl);
      await migrate({ connectionString, log });
      await migrate({ connectionString, log });

      sqs.send(12);
      expect(await runLoader(optionsFor(sqs.queue, loaderUrl()))).toMatchObject({ staged: 12 });
      expect(await runWorkerOnce(throughBouncer())).toMatchObject({ failed: 0 });
      expect((await db.superuser.query('select from public.user_logins')).rowCount).toBe(12);
    });

    test('options in the URL, which PgBouncer rejects, make commands fail at once', async () => {
      bouncer = await startPgBouncer(binary!, 'session');
      fresh = await createFreshDatabase();
      const options = '?options=-c%20statement_timeout%3D55s';
      await expect(
        migrate({ connectionString: `${bouncer.through(fresh.migratorUrl)}${options}`, log }),
      ).rejects.toThrow(FatalError);
      await expect(runLoader(optionsFor(sqs.queue, `${loaderUrl()}${options}`))).rejects.toThrow(FatalError);
    });

    test('options in the URL do no harm if PgBouncer is set to ignore them', async () => {
      bouncer = await startPgBouncer(binary!, 'session', { ignore_startup_parameters: 'options' });
      fresh = await createFreshDatabase();
      const connectionString = `${bouncer.through(fresh.migratorUrl)}?options=-c%20statement_timeout%3D55s`;
      await expect(migrate({ connectionString, log })).resolves.toBeUndefined();
    });
  });

  describe.each([
    ['the most recently used server connection', '0'],
    ['server connections in turn', '1'],
  ])('in transaction mode, using %s', (_, server_round_robin) => {
    const settings = { server_round_robin, min_pool_size: '3' };

    test('migrating is refused before it locks or creates anything', async () => {
      bouncer = await startPgBouncer(binary!, 'transaction', settings);
      fresh = await createFreshDatabase();
      const migration = migrate({ connectionString: bouncer.through(fresh.migratorUrl), log });
      await expect(migration).rejects.toThrow(/transaction mode/);
      expect([await advisoryLocks(), await schemas()]).toEqual([0, 0]);
      await migrate({ connectionString: fresh.migratorUrl, log });
    });

    test('a worker is refused', async () => {
      bouncer = await startPgBouncer(binary!, 'transaction', settings);
      await expect(runWorkerOnce(throughBouncer())).rejects.toThrow(/transaction mode/);
      await expect(runWorker(throughBouncer())).rejects.toThrow(/transaction mode/);
    });

    test('loading, unsealing and reading the status work', async () => {
      bouncer = await startPgBouncer(binary!, 'transaction', settings);
      const before = await staged();
      sqs.send(300);
      const options = optionsFor(sqs.queue, loaderUrl());
      expect(
        await runLoader({ ...options, settings: settingsWith({ LOAD_BATCH_ROWS: '40' }) }),
      ).toMatchObject({
        staged: 300,
      });
      expect((await staged()) - before).toBe(300);

      fresh = await createFreshDatabase();
      await migrate({ connectionString: fresh.migratorUrl, log });
      const other = databaseNamed(fresh.name);
      const custodian = createPool(bouncer.through(other.urls.custodian), {
        max: 2,
        applicationName: 'test',
      });
      await unseal(custodian, other.kek);
      expect((await custodian.query('select * from masking.list_keys()')).rowCount).toBe(5);
      expect((await custodian.query('select sealed from staging.status()')).rows).toEqual([
        { sealed: false },
      ]);
      await custodian.end();
    });
  });

  const staged = async () =>
    Number((await db.superuser.query('select coalesce(sum(rows), 0) as n from staging.batches')).rows[0].n);
});
