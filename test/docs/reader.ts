import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import pg from 'pg';
import { expect } from 'vitest';
import { childEnvironment, MASKED_LOGINS } from '../../local/environment.ts';
import type { TestDatabase } from '../support/database.ts';
import { makeTestDirectory, removeTestDirectory } from '../support/test-directory.ts';
import { sqlstate } from '../support/sqlstate.ts';
import type { Step } from './sessions.ts';

/** The logins of the documentation, each a role of the cluster. The migrating login is that of the tests. */
export const LOGINS = ['analyst', 'dba', 'lead', 'keeper', 'auditor', 'officer'];

/** Somebody who follows the documentation to the letter: a psql for each login, and a shell. */
export interface Reader {
  follow(step: Step): Promise<void>;
  end(): Promise<void>;
}

export function createReader(db: TestDatabase): Reader {
  const password = randomBytes(12).toString('hex');
  const sessions = new Map<string, pg.Client>();
  // Of all logins together: whoever needs another's is told it.
  const variables = new Map<string, string>();
  const place = makeTestDirectory();
  // The key that the stack was set up with, where the guide says that it is.
  writeFileSync(path.join(place, 'kek'), db.kek.toString('hex'));

  const urlOf = (login: string): string => {
    if (login === 'app_migrator') return db.urls.owner;
    const url = new URL(db.urls.superuser);
    url.username = login;
    url.password = password;
    return url.toString();
  };
  const sessionOf = async (login: string): Promise<pg.Client> => {
    const known = sessions.get(login);
    if (known !== undefined) return known;
    // What \password does in the guide.
    if (login !== 'app_migrator') await db.superuser.query(`alter role ${login} password '${password}'`);
    const client = new pg.Client({ connectionString: urlOf(login) });
    await client.connect();
    sessions.set(login, client);
    return client;
  };

  return {
    async follow(step) {
      if (step.kind === 'work') await work(db);
      else if (step.kind === 'sh') await run(step, urlOf(step.login), place);
      else await type(step, await sessionOf(step.login), variables);
    },
    async end() {
      for (const client of sessions.values()) await client.end();
      await removeTestDirectory(place);
    },
  };
}

async function type(
  step: Step & { kind: 'sql' },
  client: pg.Client,
  variables: Map<string, string>,
): Promise<void> {
  const statement = step.statement.replaceAll(/:'(\w+)'/g, (_, name: string) =>
    pg.escapeLiteral(variables.get(name) ?? `no variable ${name}`),
  );
  const asked = client.query({ text: statement, rowMode: 'array', types: { getTypeParser: () => String } });
  expect(await sqlstate(asked)).toBe(step.fails ?? 'none');
  if (step.fails !== undefined) return;
  const { rows, fields } = await asked;
  if (step.gset) {
    expect(rows).toHaveLength(1);
    for (const [index, { name }] of fields.entries()) variables.set(name, rows[0]![index] as string);
  }
  if (step.shows.length > 0) {
    const shown = (rows as unknown[][]).map((row) => row.map((value) => value ?? '').join(' | '));
    expect(shown).toEqual(step.shows);
  }
}

async function run({ command, fails }: Step & { kind: 'sh' }, url: string, cwd: string): Promise<void> {
  const random = /^openssl rand -hex 32 > (\S+)$/.exec(command)?.[1];
  if (random !== undefined) {
    writeFileSync(path.join(cwd, random), `${randomBytes(32).toString('hex')}\n`);
    return;
  }
  const [, variable, value, args] = /^(?:(\w+)=(\S+) )?masked-logins keys (.+)$/.exec(command)!;
  const child = spawn(process.execPath, [MASKED_LOGINS, 'keys', ...args!.split(' ')], {
    cwd,
    env: childEnvironment({ DATABASE_URL: url, ...(variable === undefined ? {} : { [variable]: value! }) }),
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let said = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (data) => (said += String(data)));
  const [code] = await once(child, 'close');
  expect({ code, said }).toEqual({ code: fails ? 1 : 0, said: expect.any(String) });
}

/** What a worker does in the background, until nothing is left to do. */
async function work(db: TestDatabase): Promise<void> {
  await db.pool('worker').query('select masking.retention()');
  for (const step of ['rotate_step', 'erase_step', 'purge_step']) {
    for (let more = true; more;) {
      const { rows } = await db.pool('worker').query<{ more: boolean }>(`select more from masking.${step}()`);
      more = rows[0]!.more || (await isRotating(db));
    }
  }
}

/** A step finds nothing to do, too, while a transaction that failed has not let go of the rotation yet. */
async function isRotating(db: TestDatabase): Promise<boolean> {
  const { rowCount } = await db.superuser.query(`select from masking.rotations where state = 'running'`);
  return rowCount !== 0;
}
