import Table from 'cli-table3';
import type { Command } from 'commander';
import type pg from 'pg';
import { readSettings, requireDatabase, type Settings } from '../config.ts';
import { fingerprintOf, placeOf, readKek, rewrap, unseal } from '../database/kek.ts';
import { counted } from '../counted.ts';
import { withConnection } from '../database/pool.ts';
import { codeOf, FatalError, SettingError, SQLSTATE } from '../errors.ts';
import { writeSecretFile } from '../secret-file.ts';
import { renderRotation, type KeyVersion, type RotationProgress } from '../status.ts';
import { commandLine, runCommand } from './command.ts';
import { withDatabase } from './database.ts';

const PURPOSES = ['token', 'cipher'];
const FIELDS = ['ip', 'device_id', 'body'];
const UNDER_WAY =
  'masked-logins keys list shows its progress; masked-logins keys resume continues a paused one';

/** `keys`: manages the keys, with a subcommand for each action. */
export function command(): Command {
  const keys = commandLine('keys', 'Manages the keys, as a member of logins_custodian', [
    ['masked-logins keys list', 'show the data keys and the progress of rotations'],
    ['masked-logins keys rotate --purpose cipher', 'create new cipher keys and re-encrypt everything'],
    ['masked-logins keys rewrap --new-kek-file FILE', 'change the key-encryption key'],
  ]);
  const subcommand = (
    name: string,
    description: string,
    run: (pool: pg.Pool, given: Command, settings: Settings) => Promise<void>,
  ): Command =>
    keys
      .command(name)
      .description(description)
      .allowExcessArguments(false)
      // Settings are read when a command runs, because --help needs none.
      .action((...args: unknown[]) =>
        runCommand(() => {
          const settings = readSettings();
          const database = requireDatabase(settings);
          const situation = { command: name === 'list' ? 'keys list' : 'keys', database } as const;
          return withDatabase(situation, (pool) => run(pool, args.at(-1) as Command, settings));
        }),
      );

  subcommand('list', 'show the data keys with their states, and the progress of rotations', list).option(
    '--json',
    'print an object for machines',
  );
  subcommand('rotate', 'create new keys and rotate everything to them, in the background', rotate)
    .option('--purpose <purpose>', 'token or cipher (default: both)')
    .option('--field <field>', 'ip, device_id or body (default: all)');
  subcommand('pause', 'pause the rotations that are running', (pool) =>
    changeRotations(pool, 'masking.pause_rotation', 'paused'),
  );
  subcommand('resume', 'resume paused rotations', (pool) =>
    changeRotations(pool, 'masking.resume_rotation', 'resumed'),
  );
  subcommand('destroy', 'destroy a key that a rotation has replaced', destroy)
    .argument('<purpose>', 'token or cipher')
    .argument('<version>', 'as list shows it')
    .option('--losing <count>', 'how many values become unreadable for good', '0');
  subcommand(
    'fingerprint',
    'show the fingerprints of the key-encryption key that the database needs and of the one that is set here',
    showFingerprints,
  );
  subcommand('rewrap', 'change the key-encryption key', rewrapKeys)
    .requiredOption('--new-kek-file <path>', 'file with the new key: openssl rand -hex 32 > FILE')
    .option('--in-place', 'then write the new key into the file of MASKING_KEK_FILE');
  subcommand('seal', 'remove the key-encryption key from the database', sealDatabase);
  subcommand(
    'unseal',
    'put the key-encryption key of MASKING_KEK or MASKING_KEK_FILE into the database',
    unsealDatabase,
  );
  return keys;
}

/** A row of `masking.list_keys()`. */
interface ListedKey extends KeyVersion {
  created_at: Date;
  retiring_at: Date | null;
  destroyed_at: Date | null;
}

async function list(pool: pg.Pool, given: Command): Promise<void> {
  const { rows: keys } = await pool.query<ListedKey>('select * from masking.list_keys()');
  const { rows: status } = await pool.query<{ rotations: RotationProgress[] }>(
    'select rotations from staging.status()',
  );
  const rotations = status[0]!.rotations;
  if (given.opts<{ json?: boolean }>().json === true) return print(JSON.stringify({ keys, rotations }));
  const table = new Table({
    head: ['purpose', 'field', 'version', 'state', 'since'],
    style: { head: [], border: [] },
  });
  table.push(
    ...keys.map((key) => [
      key.purpose,
      key.field,
      key.version,
      key.state,
      (key.destroyed_at ?? key.retiring_at ?? key.created_at).toISOString(),
    ]),
  );
  print([table.toString(), ...rotations.map(renderRotation)].join('\n'));
}

async function rotate(pool: pg.Pool, given: Command): Promise<void> {
  const { purpose, field } = given.opts<{ purpose?: string; field?: string }>();
  requireOneOf('--purpose', purpose, PURPOSES);
  requireOneOf('--field', field, FIELDS);
  const { rowCount } = await pool
    .query('select masking.rotate(purpose => $1, field => $2)', [purpose ?? null, field ?? null])
    .catch((error: unknown) => {
      throw advised(error, {
        [SQLSTATE.noSuchKey]: 'Bodies have a cipher key only: masked-logins keys list',
        [SQLSTATE.rotationNotDone]: UNDER_WAY,
      });
    });
  print(
    `${counted(rowCount ?? 0, 'rotation')} started: workers do them in the background, and masked-logins keys list shows their progress`,
  );
}

async function changeRotations(pool: pg.Pool, name: string, what: string): Promise<void> {
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
  await pool
    .query('select masking.destroy_key(purpose => $1, version => $2, losing => $3)', [
      purpose,
      version,
      losing,
    ])
    .catch((error: unknown) => {
      // The message begins with the number of values.
      const held = /^\d+/.exec((error as pg.DatabaseError).message ?? '')?.[0];
      throw advised(error, {
        [SQLSTATE.keyInUse]:
          held === '0'
            ? 'Leave --losing out'
            : `Wait until its rotation is done (masked-logins keys list), or pass --losing ${held} to lose them for good`,
        [SQLSTATE.noSuchKey]: `See masked-logins keys list. Rotate an active key first: masked-logins keys rotate --purpose ${purpose}`,
        [SQLSTATE.rotationNotDone]: `${UNDER_WAY}. If there is none: masked-logins keys rotate --purpose ${purpose}`,
      });
    });
  print(`destroyed the ${purpose} key ${version}`);
}

async function showFingerprints(pool: pg.Pool, _given: Command, { kek }: Settings): Promise<void> {
  const { rows } = await pool.query<{ fingerprint: string; since_at: Date; replaced_at: Date | null }>(
    'select * from masking.list_keks()',
  );
  for (const { fingerprint, since_at, replaced_at } of rows) {
    const fate = replaced_at === null ? 'in use' : `replaced at ${replaced_at.toISOString()}`;
    print(`${fingerprint}  since ${since_at.toISOString()}, ${fate}`);
  }
  if (rows.length === 0)
    print('the database has had no key-encryption key yet: it keeps the first one that it gets');
  if (kek === undefined) return;
  const here = fingerprintOf(await readKek(kek));
  print(`${here}  in ${placeOf(kek)}`);
}

async function rewrapKeys(pool: pg.Pool, given: Command, { kek }: Settings): Promise<void> {
  const { newKekFile: file, inPlace } = given.opts<{ newKekFile: string; inPlace: boolean }>();
  const current = kek !== undefined && 'file' in kek ? kek.file : undefined;
  if (inPlace && current === undefined)
    throw new SettingError('--in-place needs MASKING_KEK_FILE, the file to write');
  const next = await readKek({ file }, '--new-kek-file');
  await rewrap(pool, next);
  if (!inPlace) {
    print(
      'the data keys are wrapped under the new key: set it as MASKING_KEK or MASKING_KEK_FILE of your workers',
    );
    return;
  }
  writeSecretFile(current!, `${next.toString('hex')}\n`);
  print(`the data keys are wrapped under the new key, which is now in ${current}`);
}

async function sealDatabase(pool: pg.Pool): Promise<void> {
  await withConnection(pool, async (client) => {
    // A notice says which session keeps the key on disk.
    client.on('notice', ({ message, hint }) => print(`${message}. ${hint}`));
    await client.query('select masking.seal()');
  });
  print('sealed; a running worker that has the key unseals it within seconds');
}

async function unsealDatabase(pool: pg.Pool, _given: Command, settings: Settings): Promise<void> {
  if (settings.kek === undefined)
    throw new SettingError('MASKING_KEK or MASKING_KEK_FILE must be set to unseal');
  await unseal(pool, await readKek(settings.kek));
  print('unsealed');
}

/** Postgres's message, and what to do in terms of the command's options instead of SQL. */
function advised(error: unknown, advice: Record<string, string>): unknown {
  const code = codeOf(error);
  const remedy = code === undefined ? undefined : advice[code];
  if (remedy === undefined) return error;
  return new FatalError(`${(error as pg.DatabaseError).message}. ${remedy} [SQLSTATE ${code}]`);
}

function requireOneOf(name: string, value: string | undefined, allowed: string[]): void {
  if (value !== undefined && !allowed.includes(value))
    throw new SettingError(`${name} must be ${allowed.join(' or ')}`);
}

function print(text: string): void {
  process.stdout.write(`${text}\n`);
}
