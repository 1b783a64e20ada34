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

/** The logins that the pages create. They belong to the cluster. For `app_migrator`, the tests' login is used. */
export const LOGINS = ['analyst', 'dba', 'lead', 'keeper', 'auditor', 'officer'];

/** Runs the steps of a page exactly as written, with a session for each login. */
export interface Reader {
  follow(step: Step): Promise<void>;
  end(): Promise<void>;
}

export function createReader(db: TestDatabase): Reader {
  const password = randomBytes(12).toString('hex');
  const sessions = new Map<string, pg.Client>();
  // Shared by all logins: in the guide, people tell each other the ids of requests.
  const variables = new Map<string, string>();
  const directory = makeTestDirectory();
  // The key of the stack, in the file that the guide names.
  writeFileSync(path.join(directory, 'kek'), db.kek.toString('hex'));

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
    // In the guide, \password does this.
    if (login !== 'app_migrator') await db.superuser.query(`alter role ${login} password '${password}'`);
    const client = new pg.Client({ connectionString: urlOf(login) });
    await client.connect();
    sessions.set(login, client);
    return client;
  };

  return {
    async follow(step) {
      if (step.kind === 'work') await work(db);
      else if (step.kind === 'sh') await run(step, urlOf(step.login), directory);
      else await type(step, await sessionOf(step.login), variables);
    },
    async end() {
      for (const client of sessions.values()) await client.end();
      await removeTestDirectory(directory);
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
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (data) => (output += String(data)));
  const [code] = await once(child, 'close');
  expect({ code, output }).toEqual({ code: fails ? 1 : 0, output: expect.any(String) });
}

/** Does the background work of a worker until none is left. */
async function work(db: TestDatabase): Promise<void> {
  await db.pool('worker').query('select masking.retention()');
  for (const step of ['rotate_step', 'erase_step', 'purge_step']) {
    for (let more = true; more;) {
      const { rows } = await db.pool('worker').query<{ more: boolean }>(`select more from masking.${step}()`);
      more = rows[0]!.more || (await isRotating(db));
    }
  }
}

/** Needed because a step also finds nothing to do while a failed transaction still locks the rotation. */
async function isRotating(db: TestDatabase): Promise<boolean> {
  const { rowCount } = await db.superuser.query(`select from masking.rotations where state = 'running'`);
  return rowCount !== 0;
}
