/** Defects put back on purpose: the scan turns red for each of them. */
import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { rewrap, unseal } from '../../src/database/kek.ts';
import { CanaryBook } from '../support/leaks/canaries.ts';
import { scan } from '../support/leaks/scan.ts';
import { createWorld, type World } from '../support/leaks/world.ts';
import { close, event, mask, message, stage } from '../support/staging.ts';

let world: World;
let canaries: CanaryBook;
let restore: string[];
beforeAll(async () => {
  // What auto_explain leaks is another test's.
  world = await createWorld({ shared_preload_libraries: 'pg_stat_statements' });
  await unseal(world.db.pool('worker'), world.db.kek);
});
afterAll(() => world.stop());
beforeEach(() => {
  canaries = new CanaryBook();
  restore = [];
});
afterEach(async () => {
  for (const statement of restore) await world.db.superuser.query(statement);
});

/** Puts a defect into a function, until the test is over. */
async function mutate(signature: string, change: (definition: string) => string): Promise<void> {
  const { rows } = await world.db.superuser.query<{ definition: string }>(
    'select pg_get_functiondef($1::regprocedure) as definition',
    [signature],
  );
  const { definition } = rows[0]!;
  const changed = change(definition);
  if (changed === definition) throw new Error(`there is nothing to mutate in ${signature}`);
  restore.push(definition);
  await world.db.superuser.query(changed);
}

/** The unlogged tables that bodies are staged in. */
async function stagingTables(): Promise<string[]> {
  const { rows } = await world.db.superuser.query<{ name: string }>(
    `select a.attrelid::regclass::text as name from pg_attribute a join pg_class c on c.oid = a.attrelid
      where c.relkind = 'r' and c.relpersistence = 'u' and a.attname = 'body'`,
  );
  return rows.map(({ name }) => name);
}

const secret = () => event({ ip: canaries.address('ip'), device_id: canaries.text('device') });
const found = () => scan(world, canaries.all);
const failing = (code: string) => (definition: string) =>
  definition
    .replace('LANGUAGE sql', 'LANGUAGE plpgsql')
    .replace(/AS \$function\$.*\$function\$/s, `AS $function$
      begin raise exception using errcode = '${code}', message = 'cannot pad ' || value; end $function$`); // prettier-ignore

test('nothing mutated, nothing found', async () => {
  const batch = await stage(world.db, [message(secret())]);
  await world.db.superuser.query('analyze');
  await mask(world.db, batch);
  await close(world.db, batch);
  expect(await found()).toEqual([]);
});

test('SET STATISTICS 0 left out', async () => {
  const tables = await stagingTables();
  for (const name of tables) {
    await world.db.superuser.query(`alter table ${name} alter column body set statistics -1`);
    restore.push(`alter table ${name} alter column body set statistics 0; analyze ${name}`);
  }
  const body = secret();
  const batch = await stage(world.db, Array.from({ length: 20 }, () => ({ id: randomUUID(), body })));
  await world.db.superuser.query('analyze');
  expect(await found()).toEqual(
    expect.arrayContaining(['pg_statistic: device', 'pg_stats: device', 'WAL: device', 'base backup: device']),
  );
  await mask(world.db, batch);
  await close(world.db, batch);
}); // prettier-ignore

test('a value in the error of masking a batch', async () => {
  await mutate('masking.padded(text)', failing('53100'));
  await mutate('masking.mask_batch(uuid)', (definition) =>
    definition.replace(/exception when others then.*?\nend\n/s, 'end\n'),
  );
  const batch = await stage(world.db, [message(secret())]);
  expect(await world.witness.codeOf(mask(world.db, batch))).toBe('53100');
  expect(await found()).toEqual(expect.arrayContaining(['server log: ip', 'errors: ip']));
});

test('a value in the reason for a quarantine', async () => {
  await mutate('masking.padded(text)', failing('22000'));
  // Else a fault that strikes a sound event, too, quarantines nothing.
  await mutate('masking.probe(timestamp with time zone)', (definition) =>
    definition.replace(/\nbegin\n.*\nend\n/s, '\nbegin\n  return null;\nend\n'),
  );
  await mutate('masking.mask_one_by_one(uuid)', (definition) =>
    definition.replace(`(SQLSTATE ' || sqlstate || ')'`, `' || sqlerrm`),
  );
  await mask(world.db, await stage(world.db, [message(secret())]));
  expect(await found()).toEqual(
    expect.arrayContaining(['staging.quarantine.reason: ip', 'WAL: ip', 'data directory: ip']),
  );
});

test('staging that is logged', async () => {
  for (const name of await stagingTables()) {
    await world.db.superuser.query(`alter table ${name} set logged`);
    restore.push(`alter table ${name} set unlogged`);
  }
  await stage(world.db, [message(secret())]);
  expect(await found()).toEqual(
    expect.arrayContaining(['WAL: ip', 'data directory: device', 'base backup: device']),
  );
});

test('a key-encryption key that is logged', async () => {
  await world.db.superuser.query('alter table masking.kek set logged');
  restore.push('alter table masking.kek set unlogged');
  await rewrap(world.db.pool('custodian'), canaries.key('KEK'));
  expect(await found()).toEqual(expect.arrayContaining(['masking.kek.kek: KEK', 'WAL: KEK', 'base backup: KEK']));
}); // prettier-ignore

test('a key-encryption key that comes as a parameter', async () => {
  const kek = canaries.key('KEK');
  const call = world.db.pool('custodian').query('insert into masking.kek_inbox values ($1)', [kek]);
  expect(await world.witness.codeOf(call)).toBe('ML003');
  expect(await found()).toEqual(['errors: KEK', 'server log: KEK']);
}); // prettier-ignore

test('reveal without its check of the request shows values of which no record is left', async () => {
  const { db, witness } = world;
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
  expect(await witness.codeOf(revealAndRollBack())).toBe('ML103');

  await mutate('unmask.granted(uuid)', (definition) =>
    definition.replace(/\nbegin\n.*\nend\n/s, '\nbegin\n  return request;\nend\n'),
  );
  expect(await revealAndRollBack()).toBe(2);
  expect(await records()).toBe(before);
});
