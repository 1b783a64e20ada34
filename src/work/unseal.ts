import { isSealed, readKek, unseal } from '../database/kek.ts';
import { codeOf, FatalError, SettingError, SQLSTATE } from '../errors.ts';
import type { WorkContext } from './context.ts';

/**
 * Unseals the database where it is sealed and this worker has a key.
 *
 * @returns whether the database is unsealed now
 * @throws {FatalError} where the key is not the one of this database: no retry heals that
 * @throws {SettingError} where the key cannot be read
 */
export async function unsealIfSealed({
  pool,
  kek,
  log,
}: Pick<WorkContext, 'pool' | 'kek' | 'log'>): Promise<boolean> {
  if (!(await isSealed(pool))) return true;
  if (kek === undefined) {
    log.warn(
      'the database is sealed and this worker has no key: set MASKING_KEK or MASKING_KEK_FILE, or unseal it by hand',
    );
    return false;
  }
  try {
    await unseal(pool, await readKek(kek));
  } catch (error) {
    const code = codeOf(error);
    if (code === SQLSTATE.wrongKek) {
      const variable = 'text' in kek ? 'MASKING_KEK' : 'MASKING_KEK_FILE';
      throw new FatalError(
        `${variable} is not the key of this database (${code}): nothing was masked with it; give the key that the database was set up with`,
      );
    }
    // Somebody else was quicker, with another key: theirs has been checked, so ours is wrong.
    if (code === SQLSTATE.alreadyUnsealed) return true;
    throw error;
  }
  log.info('the database was sealed and is unsealed now');
  return true;
}

export function isKeyProblem(error: unknown): boolean {
  return error instanceof FatalError || error instanceof SettingError;
}
