import { createHmac } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import type { Pool } from 'pg';
import type { Settings } from '../config.ts';
import { SettingError } from '../errors.ts';
import { bytea, copyIn, encodeRows } from './copy.ts';
import { withConnection } from './pool.ts';

/** Length of a key-encryption key, in bytes. */
const KEK_BYTES = 32;

/**
 * Reads the key-encryption key from where the operator put it. A file is read anew each time, because agents of
 * secret stores write it when they please.
 *
 * @param fileSetting what named the file, for the error's message
 * @returns 32 bytes
 * @throws {SettingError} naming the setting, where the file cannot be read or holds something else
 */
export async function readKek(
  source: NonNullable<Settings['kek']>,
  fileSetting = 'MASKING_KEK_FILE',
): Promise<Buffer> {
  if ('text' in source) return parseKek(source.text, 'MASKING_KEK');
  let content: string;
  try {
    content = await readFile(source.file, 'utf8');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (keyIn(source.file) !== undefined)
      throw new SettingError(
        `${fileSetting} is to name a file, and holds a key: put the key into a file, or into MASKING_KEK`,
      );
    throw new SettingError(`${fileSetting} names a file that cannot be read (${code}): ${source.file}`);
  }
  return parseKek(content, fileSetting);
}

/** @throws {SettingError} where the text is no key; it never quotes the text */
export function parseKek(given: string, variable: string): Buffer {
  const key = keyIn(given);
  if (key !== undefined) return key;
  throw new SettingError(
    `${variable} must be ${KEK_BYTES} random bytes, written as 64 hexadecimal digits or as 44 characters of base64 (openssl rand -hex 32)`,
  );
}

function keyIn(given: string): Buffer | undefined {
  const text = given.trim();
  if (/^[0-9a-f]{64}$/i.test(text)) return Buffer.from(text, 'hex');
  if (!/^[A-Za-z0-9+/]{43}=$/.test(text)) return undefined;
  const bytes = Buffer.from(text, 'base64');
  return bytes.length === KEK_BYTES ? bytes : undefined;
}

/** The fingerprint of a key in hexadecimal digits, as masking.fingerprint_of computes it: it tells nothing of the key. */
export function fingerprintOf(kek: Buffer): string {
  const hmac = createHmac('sha256', kek).update('masked-logins key-encryption key').digest();
  return hmac.subarray(0, 8).toString('hex');
}

/**
 * Unseals the database. The key travels as binary COPY data, which reaches no log; the database checks it before
 * it keeps it. Handing over the key that is there already changes nothing: that is how a key is checked.
 *
 * @param pool of a login that is a member of logins_worker or logins_custodian
 * @throws SQLSTATE ML002 for a key that is not this database's, ML003 the same while it is unsealed; 55P03 where somebody
 *   else's unsealing is not over yet
 */
export function unseal(pool: Pool, kek: Buffer): Promise<void> {
  return handOver(pool, 'masking.kek_inlet', kek);
}

/**
 * Changes the key-encryption key: wraps every data key anew, in one transaction.
 *
 * @param pool of a login that is a member of logins_custodian
 * @throws SQLSTATE ML001 where the database is sealed, ML002 for a key that was in use before
 */
export function rewrap(pool: Pool, nextKek: Buffer): Promise<void> {
  return handOver(pool, 'masking.next_kek_inlet', nextKek);
}

/** Whether the database is sealed. */
export async function isSealed(pool: Pool): Promise<boolean> {
  const { rows } = await pool.query<{ sealed: boolean }>('select masking.is_sealed() as sealed');
  return rows[0]?.sealed === true;
}

async function handOver(pool: Pool, inlet: string, kek: Buffer): Promise<void> {
  await withConnection(pool, (client) =>
    copyIn(client, `copy ${inlet} from stdin (format binary)`, encodeRows([bytea], [[kek]])),
  );
}
