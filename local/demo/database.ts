import pg from 'pg';
import { codeOf } from '../../src/errors.ts';

/** A connection of one of the stack's logins, ended afterwards. */
export async function withClient<T>(
  connectionString: string,
  use: (client: pg.Client) => Promise<T>,
): Promise<T> {
  const client = new pg.Client({ connectionString, application_name: 'masked-logins demo' });
  await client.connect();
  try {
    return await use(client);
  } finally {
    await client.end();
  }
}

/** One row of one query. */
export async function rowOf<T extends pg.QueryResultRow>(
  client: pg.Client,
  query: string,
  values: unknown[] = [],
): Promise<T> {
  const { rows } = await client.query<T>(query, values);
  return rows[0]!;
}

/** Tries what must not be allowed, and says how it went. */
export async function refusal(what: string, attempt: () => Promise<unknown>): Promise<string> {
  try {
    await attempt();
    return `  ${what}  →  answered, and should not have been`;
  } catch (error) {
    return `  ${what}  →  refused, SQLSTATE ${codeOf(error)}`;
  }
}

/** Enough of a token or hash to tell two apart, and few enough characters for a terminal. */
export function short(value: string | null | undefined): string {
  if (value === null || value === undefined) return '';
  return value.length > 18 ? `${value.slice(0, 13)}…` : value;
}
