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
 * Reads the key-encryption key from the setting or the file. The file is read each time, because the agent of a secret
 * store may write it at any time.
 *
 * @param fileSetting the setting or option that names the file, for the error's message
 * @returns 32 bytes
 * @throws {SettingError} that names the setting, if the file cannot be read or contains no key
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
        `${fileSetting} must be the name of a file, but is a key: put the key into a file, or into MASKING_KEK`,
      );
    throw new SettingError(`${fileSetting} names a file that cannot be read (${code}): ${source.file}`);
  }
  return parseKek(content, fileSetting);
}

/** @throws {SettingError} if the text is not a key; the message does not quote it */
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

/** Where the key is set, for people. */
export function placeOf(source: NonNullable<Settings['kek']>): string {
  return 'text' in source ? 'MASKING_KEK' : `MASKING_KEK_FILE (${source.file})`;
}

/**
 * The fingerprint of a key in hexadecimal digits, as masking.fingerprint_of computes it. It does not reveal the key.
 */
export function fingerprintOf(kek: Buffer): string {
  const hmac = createHmac('sha256', kek).update('masked-logins key-encryption key').digest();
  return hmac.subarray(0, 8).toString('hex');
}

/**
 * Unseals the database. The key is sent as binary COPY data, which reaches no log. The database checks the key before
 * it stores it. If the database is unsealed with the same key, nothing changes, so this is also how to check a key.
 *
 * @param pool of a login that is a member of logins_worker or logins_custodian
 * @throws SQLSTATE ML002 if the key is not this database's, ML003 the same while it is unsealed; 55P03 while another
 *   session is unsealing
 */
export function unseal(pool: Pool, kek: Buffer): Promise<void> {
  return sendKek(pool, 'masking.kek_inbox', kek);
}

/**
 * Changes the key-encryption key: wraps all data keys under the new one, in one transaction.
 *
 * @param pool of a login that is a member of logins_custodian
 * @throws SQLSTATE ML001 if the database is sealed, ML002 if the key was in use before
 */
export function rewrap(pool: Pool, nextKek: Buffer): Promise<void> {
  return sendKek(pool, 'masking.next_kek_inbox', nextKek);
}

/** Whether the database is sealed. */
export async function isSealed(pool: Pool): Promise<boolean> {
  const { rows } = await pool.query<{ sealed: boolean }>('select masking.is_sealed() as sealed');
  return rows[0]?.sealed === true;
}

async function sendKek(pool: Pool, inbox: string, kek: Buffer): Promise<void> {
  await withConnection(pool, (client) =>
    copyIn(client, `copy ${inbox} from stdin (format binary)`, encodeRows([bytea], [[kek]])),
  );
}
