import type pg from 'pg';
import { checkDatabase } from '../database/check.ts';
import { createPool } from '../database/pool.ts';
import type { DatabaseSettings } from '../database/url.ts';
import { explaining, type Situation } from '../explain.ts';

/**
 * Connects a command to its database, and checks the database, for as long as `use` takes.
 *
 * @throws {FatalError | SettingError} with one line for people, in place of the error of `use`
 */
export async function withDatabase<T>(
  situation: Situation & { database: DatabaseSettings },
  use: (pool: pg.Pool) => Promise<T>,
): Promise<T> {
  const { command, database } = situation;
  const [name] = command.split(' ');
  const pool = createPool(database.url, { max: 1, applicationName: `masked-logins ${name}` });
  try {
    return await explaining(situation, async () => {
      await checkDatabase(pool);
      return use(pool);
    });
  } finally {
    await pool.end();
  }
}
