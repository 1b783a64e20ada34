/** Sessions with changed settings, at each level at which settings can be changed. */
import pg from 'pg';
import type { StackLogin } from '../../local/stack/logins.ts';
import { createPool } from '../../src/database/pool.ts';
import { loginName } from '../../local/stack/logins.ts';
import { QUERYING_LOGINS, type Sessions } from './answers.ts';
import type { TestDatabase } from './database.ts';

export type Level = 'database' | 'role' | 'session';
export type ChangedSettings = Record<string, string>;

const assignments = (settings: ChangedSettings) =>
  Object.entries(settings).map(([name, value]) => `${name} = ${value.split(', ').map((item) => pg.escapeLiteral(item)).join(', ')}`); // prettier-ignore

/** Calls `use` with pools of every login in which the settings are changed, and resets the settings. */
export async function withSettings<T>(
  db: Pick<TestDatabase, 'name' | 'urls' | 'superuser'>,
  level: Level,
  settings: ChangedSettings,
  use: (sessions: Sessions) => Promise<T>,
  options: { pinned: boolean } = { pinned: false },
): Promise<T> {
  const pools = new Map<StackLogin, pg.Pool>();
  const targets =
    level === 'database'
      ? [`database ${db.name}`]
      : level === 'role'
        ? QUERYING_LOGINS.map((login) => `role ${loginName(login)} in database ${db.name}`)
        : [];
  const run = (statements: string[]) => db.superuser.query(statements.join('; '));
  await run(targets.flatMap((target) => assignments(settings).map((each) => `alter ${target} set ${each}`)));
  const pool = (login: StackLogin): pg.Pool => {
    if (login === 'superuser') return db.superuser;
    const known = pools.get(login) ?? open(login);
    pools.set(login, known);
    return known;
  };
  const open = (login: StackLogin): pg.Pool =>
    options.pinned
      ? createPool(db.urls[login], { max: 1, applicationName: 'test settings' })
      : new pg.Pool({
          connectionString: db.urls[login],
          max: 1,
          onConnect: async (client) => {
            if (level !== 'session') return;
            await client.query(assignments(settings).map((each) => `set ${each}`).join('; ')); // prettier-ignore
          },
        });
  try {
    return await use({ superuser: db.superuser, pool });
  } finally {
    await Promise.all([...pools.values()].map((each) => each.end()));
    await run(targets.map((target) => `alter ${target} reset all`));
  }
}
