import type { Pool } from 'pg';
import { isSealed, readKek, unseal } from '../database/kek.ts';
import { codeOf, FatalError, LOCK_NOT_AVAILABLE, SettingError, SQLSTATE } from '../errors.ts';
import type { WorkContext } from './task.ts';

type Unsealer = Pick<WorkContext, 'pool' | 'kek' | 'log'>;

/** Workers that have said that they have no key: they say it again only after the database was unsealed. */
const keyless = new WeakSet<Pool>();

/**
 * Checks this worker's key at its start, sealed or not: the database compares it with the one that is in use, or unseals
 * with it. A wrong key that goes unnoticed would show after the next crash only.
 *
 * @throws {FatalError} where the key is not the one of this database: no retry heals that
 * @throws {SettingError} where the key cannot be read
 */
export async function checkKek(context: Unsealer): Promise<void> {
  if (context.kek === undefined) {
    await unsealIfSealed(context);
    return;
  }
  const sealed = await isSealed(context.pool);
  if ((await handOver(context, context.kek)) && sealed) sayUnsealed(context);
}

/**
 * Unseals the database where it is sealed and this worker has a key.
 *
 * @returns whether the database is unsealed now
 * @throws {FatalError} where the key is not the one of this database: no retry heals that
 * @throws {SettingError} where the key cannot be read
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
  if (!(await handOver(context, kek))) return false;
  sayUnsealed(context);
  return true;
}

export function isKeyProblem(error: unknown): boolean {
  return error instanceof FatalError || error instanceof SettingError;
}

/** @returns false where somebody else's unsealing is not over: the next beat tries again */
async function handOver({ pool, log }: Unsealer, kek: NonNullable<WorkContext['kek']>): Promise<boolean> {
  try {
    await unseal(pool, await readKek(kek));
    return true;
  } catch (error) {
    const code = codeOf(error);
    if (code === SQLSTATE.wrongKek || code === SQLSTATE.alreadyUnsealed) {
      const setting = 'text' in kek ? 'MASKING_KEK' : `MASKING_KEK_FILE (${kek.file})`;
      // Our own message: it holds fingerprints and times.
      throw new FatalError(
        `${setting} does not hold the key of this database, and nothing was masked with it: ${(error as Error).message} (${code})`,
      );
    }
    if (code !== LOCK_NOT_AVAILABLE) throw error;
    log.warn('somebody else is unsealing the database and has not committed: this worker tries again soon');
    return false;
  }
}

function sayUnsealed({ log }: Unsealer): void {
  log.info('the database was sealed and is unsealed now');
}
