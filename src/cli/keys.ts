import Table from 'cli-table3';
import type { Command } from 'commander';
import type pg from 'pg';
import { readSettings, requireDatabase, type Settings } from '../config.ts';
import { checkDatabase } from '../database/check.ts';
import { fatalDatabaseFault } from '../database/faults.ts';
import { fingerprintOf, readKek, replaceKekFile, rewrap, unseal } from '../database/kek.ts';
import { createPool } from '../database/pool.ts';
import { codeOf, FatalError, SettingError } from '../errors.ts';
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
      .action((...args: unknown[]) => withPool(settings, (pool) => run(pool, args.at(-1) as Command)));

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
  command(
    'fingerprint',
    'show which key-encryption key the database wants, and which one is set here, by their fingerprints',
    (pool) => showFingerprints(pool, settings),
  );
  command('rewrap', 'change the key-encryption key', (pool, given) =>
    rewrapKeys(pool, given, settings),
  ).requiredOption('--new-kek-file <path>', 'file with the new key: openssl rand -hex 32 > FILE');
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

async function showFingerprints(pool: pg.Pool, { kek }: Settings): Promise<void> {
  const { rows } = await pool.query<{ fingerprint: string; since_at: Date; replaced_at: Date | null }>(
    'select * from masking.list_keks()',
  );
  for (const { fingerprint, since_at, replaced_at } of rows) {
    const fate = replaced_at === null ? 'the one wanted' : `replaced at ${replaced_at.toISOString()}`;
    print(`${fingerprint}  since ${since_at.toISOString()}, ${fate}`);
  }
  if (rows.length === 0)
    print('the database has had no key-encryption key yet: the first one becomes its own');
  if (kek === undefined) return;
  const here = fingerprintOf(await readKek(kek));
  print(`${here}  in ${'text' in kek ? 'MASKING_KEK' : `the file ${kek.file}`}`);
}

async function rewrapKeys(pool: pg.Pool, given: Command, { kek }: Settings): Promise<void> {
  const file = given.opts<{ newKekFile: string }>().newKekFile;
  const next = await readKek({ file }, '--new-kek-file');
  await rewrap(pool, next);
  if (kek !== undefined && 'file' in kek && kek.ofStack) {
    await replaceKekFile(kek.file, next);
    print(`the data keys are wrapped under the new key, and it is in the stack's own file now: ${kek.file}`);
    return;
  }
  print(
    'the data keys are wrapped under the new key: put it where your workers find MASKING_KEK or MASKING_KEK_FILE',
  );
}

async function sealDatabase(pool: pg.Pool): Promise<void> {
  const client = await pool.connect();
  try {
    // It says who keeps the key on disk.
    client.on('notice', ({ message, hint }) => print(`${message}. ${hint}`));
    await client.query('select masking.seal()');
  } finally {
    client.release();
  }
  print('sealed: a worker that runs and has the key unseals it again within seconds');
}

async function unsealDatabase(pool: pg.Pool, settings: Settings): Promise<void> {
  if (settings.kek === undefined)
    throw new SettingError('MASKING_KEK or MASKING_KEK_FILE must be set to unseal');
  await unseal(pool, await readKek(settings.kek));
  print('unsealed');
}

async function withPool(settings: Settings, use: (pool: pg.Pool) => Promise<void>): Promise<void> {
  const pool = createPool(requireDatabase(settings).url, { max: 1, applicationName: 'masked-logins keys' });
  try {
    await checkDatabase(pool);
    await use(pool);
  } catch (error) {
    throw explained(error);
  } finally {
    await pool.end();
  }
}

/** Our own SQLSTATEs come with messages for people, which hold no value of anybody. */
function explained(error: unknown): unknown {
  const code = codeOf(error);
  if (code?.startsWith('ML') === true) {
    const { message, hint } = error as pg.DatabaseError;
    return new FatalError(`${message}${hint === undefined ? '' : `. ${hint}`} [SQLSTATE ${code}]`);
  }
  const fault = fatalDatabaseFault(error);
  return fault === undefined ? error : new FatalError(fault);
}

function requireOneOf(name: string, value: string | undefined, allowed: string[]): void {
  if (value !== undefined && !allowed.includes(value))
    throw new SettingError(`${name} must be ${allowed.join(' or ')}`);
}

function print(text: string): void {
  process.stdout.write(`${text}\n`);
}
