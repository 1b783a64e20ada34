import Table from 'cli-table3';
import type { Command } from 'commander';
import type pg from 'pg';
import { readSettings, requireDatabase, type Settings } from '../config.ts';
import { checkDatabase } from '../database/check.ts';
import { readKek, rewrap, unseal } from '../database/kek.ts';
import { createPool } from '../database/pool.ts';
import { SettingError } from '../errors.ts';
import { explaining } from '../explain.ts';
import { commandLine, runCommand } from './command.ts';

const PURPOSES = ['token', 'cipher'];
const FIELDS = ['ip', 'device_id', 'body'];

await runCommand(async () => {
  const settings = readSettings('custodian');
  const line = commandLine('keys', 'Looks after the keys, as a member of logins_custodian');
  const command = (
    name: string,
    description: string,
    run: (pool: pg.Pool, given: Command) => Promise<void>,
  ): Command =>
    line
      .command(name)
      .description(description)
      .allowExcessArguments(false)
      .action((...args: unknown[]) => withPool(settings, name, (pool) => run(pool, args.at(-1) as Command)));

  command('list', 'show the data keys and where they are in their lives', list);
  command('rotate', 'make new keys and bring everything under them, in the background', rotate)
    .option('--purpose <purpose>', 'token or cipher (default: both)')
    .option('--field <field>', 'ip, device_id or body (default: all)');
  command('pause', 'pause the rotations that are running', (pool) =>
    say(pool, 'masking.pause_rotation', 'paused'),
  );
  command('resume', 'let paused rotations go on', (pool) => say(pool, 'masking.resume_rotation', 'going on'));
  command('destroy', 'destroy a key that a rotation has replaced', destroy)
    .argument('<purpose>', 'token or cipher')
    .argument('<version>', 'as list shows it')
    .option('--losing <count>', 'how many values become unreadable for ever', '0');
  command('rewrap', 'change the key-encryption key', rewrapKeys).requiredOption(
    '--new-kek-file <path>',
    'file with the new key: openssl rand -hex 32 > FILE',
  );
  command('seal', 'remove the key-encryption key from the database', sealDatabase);
  command('unseal', 'put it there again, from MASKING_KEK or MASKING_KEK_FILE', (pool) =>
    unsealDatabase(pool, settings),
  );
  await line.parseAsync();
});

async function list(pool: pg.Pool): Promise<void> {
  const { rows } = await pool.query<
    Record<'purpose' | 'field' | 'version' | 'state', string> & { created_at: Date }
  >('select * from masking.list_keys()');
  const table = new Table({
    head: ['purpose', 'field', 'version', 'state', 'since'],
    style: { head: [], border: [] },
  });
  table.push(
    ...rows.map((key) => [key.purpose, key.field, key.version, key.state, key.created_at.toISOString()]),
  );
  print(table.toString());
}

async function rotate(pool: pg.Pool, given: Command): Promise<void> {
  const { purpose, field } = given.opts<{ purpose?: string; field?: string }>();
  requireOneOf('--purpose', purpose, PURPOSES);
  requireOneOf('--field', field, FIELDS);
  const { rowCount } = await pool.query('select masking.rotate(purpose => $1, field => $2)', [
    purpose ?? null,
    field ?? null,
  ]);
  print(
    `${rowCount} rotations begun; workers do them in the background, and npm run status shows how far they are`,
  );
}

async function say(pool: pg.Pool, name: string, what: string): Promise<void> {
  const { rows } = await pool.query<{ count: number }>(`select ${name}() as count`);
  print(`${rows[0]?.count} rotations ${what}`);
}

async function destroy(pool: pg.Pool, given: Command): Promise<void> {
  const [purpose, version] = given.args;
  requireOneOf('purpose', purpose, PURPOSES);
  const losing = given.opts<{ losing: string }>().losing;
  if (!/^\d{1,9}$/.test(version ?? '') || !/^\d{1,15}$/.test(losing)) {
    throw new SettingError('version and --losing must be whole numbers');
  }
  await pool.query('select masking.destroy_key(purpose => $1, version => $2, losing => $3)', [
    purpose,
    version,
    losing,
  ]);
  print(`the ${purpose} key ${version} is destroyed`);
}

async function rewrapKeys(pool: pg.Pool, given: Command): Promise<void> {
  const file = given.opts<{ newKekFile: string }>().newKekFile;
  await rewrap(pool, await readKek({ file }, '--new-kek-file'));
  print(
    'the data keys are wrapped under the new key: put it where your workers find MASKING_KEK or MASKING_KEK_FILE',
  );
}

async function sealDatabase(pool: pg.Pool): Promise<void> {
  await pool.query('select masking.seal()');
  print('sealed: a worker that runs and has the key unseals it again within seconds');
}

async function unsealDatabase(pool: pg.Pool, settings: Settings): Promise<void> {
  if (settings.kek === undefined)
    throw new SettingError('MASKING_KEK or MASKING_KEK_FILE must be set to unseal');
  await unseal(pool, await readKek(settings.kek));
  print('unsealed');
}

async function withPool(
  settings: Settings,
  name: string,
  use: (pool: pg.Pool) => Promise<void>,
): Promise<void> {
  const database = requireDatabase(settings);
  const pool = createPool(database.url, { max: 1, applicationName: 'masked-logins keys' });
  try {
    await explaining({ command: name === 'list' ? 'keys list' : 'keys', database }, async () => {
      await checkDatabase(pool);
      await use(pool);
    });
  } finally {
    await pool.end();
  }
}

function requireOneOf(name: string, value: string | undefined, allowed: string[]): void {
  if (value !== undefined && !allowed.includes(value))
    throw new SettingError(`${name} must be ${allowed.join(' or ')}`);
}

function print(text: string): void {
  process.stdout.write(`${text}\n`);
}
