import type { Pool } from 'pg';
import { isSealed, placeOf, readKek, unseal } from '../database/kek.ts';
import { codeOf, FatalError, LOCK_NOT_AVAILABLE, SQLSTATE } from '../errors.ts';
import type { WorkContext } from './task.ts';

type Unsealer = Pick<WorkContext, 'pool' | 'kek' | 'log'>;

/** Workers that have logged that they have no key. They log it again only after the database was unsealed. */
const keyless = new WeakSet<Pool>();

/**
 * Checks the worker's key at its start: the database compares it with the key in use, or unseals with it. Otherwise a
 * wrong key would be noticed only after the next crash.
 *
 * @throws {FatalError} if the key is not this database's key
 * @throws {SettingError} if the key cannot be read
 */
export async function checkKek(context: Unsealer): Promise<void> {
  if (context.kek === undefined) {
    await unsealIfSealed(context);
    return;
  }
  const sealed = await isSealed(context.pool);
  if ((await tryToUnseal(context, context.kek)) && sealed) logUnsealed(context);
}

/**
 * Unseals the database if it is sealed and this worker has a key.
 *
 * @returns whether the database is unsealed now
 * @throws {FatalError} if the key is not this database's key
 * @throws {SettingError} if the key cannot be read
 */
export async function unsealIfSealed(context: Unsealer): Promise<boolean> {
  const { pool, kek, log } = context;
  if (!(await isSealed(pool))) {
    keyless.delete(pool);
    return true;
  }
  if (kek === undefined) {
    if (!keyless.has(pool)) {
      log.warn(
        'the database is sealed and this worker has no key: set MASKING_KEK or MASKING_KEK_FILE, or unseal it by hand',
      );
    }
    keyless.add(pool);
    return false;
  }
  if (!(await tryToUnseal(context, kek))) return false;
  logUnsealed(context);
  return true;
}

/** @returns false if another session is unsealing; the next heartbeat tries again */
async function tryToUnseal({ pool, log }: Unsealer, kek: NonNullable<WorkContext['kek']>): Promise<boolean> {
  try {
    await unseal(pool, await readKek(kek));
    return true;
  } catch (error) {
    const code = codeOf(error);
    if (code === SQLSTATE.wrongKek || code === SQLSTATE.alreadyUnsealed) {
      // The message is our own. It contains fingerprints and times.
      throw new FatalError(
        `${placeOf(kek)} does not hold the key of this database, and nothing was masked with it: ${(error as Error).message} (${code})`,
      );
    }
    if (code !== LOCK_NOT_AVAILABLE) throw error;
    log.warn('another session is unsealing the database and has not committed: retrying soon');
    return false;
  }
}

function logUnsealed({ log }: Unsealer): void {
  log.info('the database was sealed; it is unsealed now');
}
