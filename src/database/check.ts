import type { ClientBase, Pool } from 'pg';
import { FatalError } from '../errors.ts';

/**
 * The first minor release of each major version without CVE-2026-2005 (code execution when pgcrypto decrypts a crafted
 * ciphertext). Newer major versions do not have it.
 */
const FIRST_SAFE: Record<number, number> = { 16: 12, 17: 8, 18: 2 };
const OLDEST_MAJOR = 16;

/**
 * @param versionNumber `server_version_num`, such as 180004 for 18.4
 * @returns what is wrong with that version and what to do; undefined if nothing is
 */
export function faultOfVersion(versionNumber: number): string | undefined {
  const major = Math.floor(versionNumber / 10_000);
  const minor = versionNumber % 10_000;
  if (major < OLDEST_MAJOR) {
    return `this Postgres is version ${major}.${minor}: masked-logins needs ${OLDEST_MAJOR} or newer (pg_input_is_valid)`;
  }
  const safe = FIRST_SAFE[major];
  if (safe !== undefined && minor < safe) {
    return `this Postgres is version ${major}.${minor}, whose pgcrypto has CVE-2026-2005: update it to ${major}.${safe} or newer`;
  }
  return undefined;
}

/** @throws {FatalError} if the server's version is too old or vulnerable, or the database's encoding is not UTF8 */
export async function checkServer(client: ClientBase | Pool): Promise<void> {
  const { rows } = await client.query<{ version: number; encoding: string }>(
    `select current_setting('server_version_num')::integer as version, current_setting('server_encoding') as encoding`,
  );
  const { version = 0, encoding = '' } = rows[0] ?? {};
  const fault = faultOfVersion(version);
  if (fault !== undefined) throw new FatalError(fault);
  if (encoding !== 'UTF8') {
    throw new FatalError(
      `the encoding of the database is ${encoding}, and masked-logins needs UTF8: create another database with \`create database … encoding 'UTF8' template template0\``,
    );
  }
}

/**
 * Checks that the server is suitable and the database is migrated.
 *
 * @throws {FatalError} that says what is missing and what to do
 * @throws any error of the connection
 */
export async function checkDatabase(pool: Pool): Promise<void> {
  await checkServer(pool);
  // Read from the catalogs, because to_regproc() raises an error for a login without USAGE on the schema.
  const { rows } = await pool.query<{ migrated: boolean }>(
    `select exists (
       select from pg_catalog.pg_proc p
       join pg_catalog.pg_namespace n on n.oid = p.pronamespace
       where n.nspname = 'masking' and p.proname = 'mask_batch'
     ) as migrated`,
  );
  if (rows[0]?.migrated !== true) {
    throw new FatalError(
      'masked-logins is not installed in the database: run: masked-logins migrate, or check DATABASE_URL',
    );
  }
}
