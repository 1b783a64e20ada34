import type pg from 'pg';
import { columnsOf, readSettings, requireDatabase, type Settings } from '../config.ts';
import { fingerprintOf, placeOf, readKek, rewrap, unseal } from '../database/kek.ts';
import { counted } from '../counted.ts';
import { withConnection } from '../database/pool.ts';
import { codeOf, FatalError, SettingError, SQLSTATE } from '../errors.ts';
import { writeSecretFile } from '../secret-file.ts';
import { renderKeys, type ListedKey, type RotationProgress } from '../status.ts';
import { withDatabase } from './database.ts';

const UNDER_WAY =
  'masked-logins keys list shows its progress; masked-logins keys resume continues a paused one';

/** What was typed after the subcommand. Commander has checked what has choices. */
interface Given {
  args: string[];
  options: {
    json?: boolean;
    purpose?: string;
    field?: string;
    losing?: string;
    newKekFile?: string;
    inPlace?: boolean;
  };
}

type Subcommand = (pool: pg.Pool, given: Given, settings: Settings) => Promise<void>;

const SUBCOMMANDS: Record<string, Subcommand> = {
  list,
  rotate,
  pause: (pool) => changeRotations(pool, 'masking.pause_rotation', 'paused'),
  resume: (pool) => changeRotations(pool, 'masking.resume_rotation', 'resumed'),
  destroy,
  fingerprint: showFingerprints,
  rewrap: rewrapKeys,
  seal: sealDatabase,
  unseal: unsealDatabase,
};

/** `keys NAME`: manages the keys. */
export async function run(name: string, args: string[], options: Given['options']): Promise<void> {
  const settings = readSettings();
  const database = requireDatabase(settings);
  const situation = { command: name === 'list' ? 'keys list' : 'keys', database } as const;
  await withDatabase(situation, (pool) => SUBCOMMANDS[name]!(pool, { args, options }, settings));
}

async function list(pool: pg.Pool, { options }: Given): Promise<void> {
  const { rows: keys } = await pool.query<ListedKey>('select * from masking.list_keys()');
  const { rows: status } = await pool.query<{ rotations: RotationProgress[] }>(
    'select rotations from staging.status()',
  );
  const rotations = status[0]!.rotations;
  if (options.json === true) return print(JSON.stringify({ keys, rotations }));
  print(renderKeys(keys, rotations, columnsOf(process.stdout)));
}

async function rotate(pool: pg.Pool, { options: { purpose, field } }: Given): Promise<void> {
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

async function destroy(pool: pg.Pool, { args, options: { losing = '0' } }: Given): Promise<void> {
  const [purpose, version] = args;
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

async function showFingerprints(pool: pg.Pool, _given: Given, { kek }: Settings): Promise<void> {
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

async function rewrapKeys(pool: pg.Pool, { options }: Given, { kek }: Settings): Promise<void> {
  const { newKekFile: file = '', inPlace } = options;
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

async function unsealDatabase(pool: pg.Pool, _given: Given, settings: Settings): Promise<void> {
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

function print(text: string): void {
  process.stdout.write(`${text}\n`);
}
