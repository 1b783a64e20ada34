/** Each test makes a deliberate defect, and expects that the scan finds the leak. */
import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { rewrap, unseal } from '../../src/database/kek.ts';
import { CanarySet } from '../support/leaks/canaries.ts';
import { scan } from '../support/leaks/scan.ts';
import { createWorld, type World } from '../support/leaks/world.ts';
import { close, event, mask, message, stage } from '../support/staging.ts';

let world: World;
let canaries: CanarySet;
let restore: string[];
beforeAll(async () => {
  // Without auto_explain: another test checks the plans.
  world = await createWorld({ shared_preload_libraries: 'pg_stat_statements' });
  await unseal(world.db.pool('worker'), world.db.kek);
});
afterAll(() => world.stop());
beforeEach(() => {
  canaries = new CanarySet();
  restore = [];
});
afterEach(async () => {
  for (const statement of restore) await world.db.superuser.query(statement);
});

/** Puts a defect into a function until the end of the test. */
async function mutate(signature: string, change: (definition: string) => string): Promise<void> {
  const { rows } = await world.db.superuser.query<{ definition: string }>(
    'select pg_get_functiondef($1::regprocedure) as definition',
    [signature],
  );
  const { definition } = rows[0]!;
  const changed = change(definition);
  if (changed === definition) throw new Error(`the text of ${signature} is not as expected`);
  restore.push(definition);
  await world.db.superuser.query(changed);
}

/** The unlogged tables that hold staged bodies. */
async function stagingTables(): Promise<string[]> {
  const { rows } = await world.db.superuser.query<{ name: string }>(
    `select a.attrelid::regclass::text as name from pg_attribute a join pg_class c on c.oid = a.attrelid
      where c.relkind = 'r' and c.relpersistence = 'u' and a.attname = 'body'`,
  );
  return rows.map(({ name }) => name);
}

const secretEvent = () => event({ ip: canaries.address('ip'), device_id: canaries.text('device') });
const found = () => scan(world, canaries.all);
const failing = (code: string) => (definition: string) =>
  definition
    .replace('LANGUAGE sql', 'LANGUAGE plpgsql')
    .replace(/AS \$function\$.*\$function\$/s, `AS $function$
      begin raise exception using errcode = '${code}', message = 'cannot pad ' || value; end $function$`); // prettier-ignore

test('without a defect, the scan finds nothing', async () => {
  const batch = await stage(world.db, [message(secretEvent())]);
  await world.db.superuser.query('analyze');
  await mask(world.db, batch);
  await close(world.db, batch);
  expect(await found()).toEqual([]);
});

test('if SET STATISTICS 0 is missing, the scan finds values in statistics, WAL and base backup', async () => {
  const tables = await stagingTables();
  for (const name of tables) {
    await world.db.superuser.query(`alter table ${name} alter column body set statistics -1`);
    restore.push(`alter table ${name} alter column body set statistics 0; analyze ${name}`);
  }
  const body = secretEvent();
  const batch = await stage(world.db, Array.from({ length: 20 }, () => ({ id: randomUUID(), body })));
  await world.db.superuser.query('analyze');
  expect(await found()).toEqual(
    expect.arrayContaining(['pg_statistic: device', 'pg_stats: device', 'WAL: device', 'base backup: device']),
  );
  await mask(world.db, batch);
  await close(world.db, batch);
}); // prettier-ignore

test('if an error of masking contains a value, the scan finds it in the error and in the server log', async () => {
  await mutate('masking.padded(text)', failing('53100'));
  await mutate('masking.mask_batch(uuid)', (definition) =>
    definition.replace(/exception when others then.*?\nend\n/s, 'end\n'),
  );
  const batch = await stage(world.db, [message(secretEvent())]);
  expect(await world.recorder.codeOf(mask(world.db, batch))).toBe('53100');
  expect(await found()).toEqual(expect.arrayContaining(['server log: ip', 'errors: ip']));
});

test('if the reason for a quarantine contains a value, the scan finds it', async () => {
  await mutate('masking.padded(text)', failing('22000'));
  // masking.probe would fail too, and then the message would not be quarantined.
  await mutate('masking.probe(timestamp with time zone)', (definition) =>
    definition.replace(/\nbegin\n.*\nend\n/s, '\nbegin\n  return null;\nend\n'),
  );
  await mutate('masking.mask_one_by_one(uuid)', (definition) =>
    definition.replace(`(SQLSTATE ' || sqlstate || ')'`, `' || sqlerrm`),
  );
  await mask(world.db, await stage(world.db, [message(secretEvent())]));
  expect(await found()).toEqual(
    expect.arrayContaining(['staging.quarantine.reason: ip', 'WAL: ip', 'data directory: ip']),
  );
});

test('if staging is logged, the scan finds values in WAL, data directory and base backup', async () => {
  for (const name of await stagingTables()) {
    await world.db.superuser.query(`alter table ${name} set logged`);
    restore.push(`alter table ${name} set unlogged`);
  }
  await stage(world.db, [message(secretEvent())]);
  expect(await found()).toEqual(
    expect.arrayContaining(['WAL: ip', 'data directory: device', 'base backup: device']),
  );
});

test('if masking.kek is logged, the scan finds the key-encryption key', async () => {
  await world.db.superuser.query('alter table masking.kek set logged');
  restore.push('alter table masking.kek set unlogged');
  await rewrap(world.db.pool('custodian'), canaries.key('KEK'));
  expect(await found()).toEqual(expect.arrayContaining(['masking.kek.kek: KEK', 'WAL: KEK', 'base backup: KEK']));
}); // prettier-ignore

test('if the key-encryption key is sent as a parameter, the scan finds it in the error and in the server log', async () => {
  const kek = canaries.key('KEK');
  const call = world.db.pool('custodian').query('insert into masking.kek_inbox values ($1)', [kek]);
  expect(await world.recorder.codeOf(call)).toBe('ML003');
  expect(await found()).toEqual(['errors: KEK', 'server log: KEK']);
}); // prettier-ignore

test('if reveal does not check that the request is committed, it shows values and leaves no record', async () => {
  const { db, recorder } = world;
  await mask(db, await stage(db, [message(event({ user_id: 'shown' }))]));
  const revealAndRollBack = async () => {
    const unmasker = await db.pool('unmasker').connect();
    try {
      await unmasker.query('begin');
      const { rows } = await unmasker.query(`select unmask.request_user('shown', 'a test') as id`);
      return (await unmasker.query('select value from unmask.reveal($1)', [rows[0].id])).rowCount;
    } finally {
      await unmasker.query('rollback');
      unmasker.release();
    }
  };
  const records = async () => (await db.superuser.query('select from unmask.requests')).rowCount;
  const before = await records();
  expect(await recorder.codeOf(revealAndRollBack())).toBe('ML103');

  await mutate('unmask.granted(uuid)', (definition) =>
    definition.replace(/\nbegin\n.*\nend\n/s, '\nbegin\n  return request;\nend\n'),
  );
  expect(await revealAndRollBack()).toBe(2);
  expect(await records()).toBe(before);
});
