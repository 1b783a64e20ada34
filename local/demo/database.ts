import type pg from 'pg';
import { codeOf } from '../../src/errors.ts';

/** A query for the device that was seen in most logins. */
export const BUSIEST_DEVICE = `
  select masked_device_id from public.user_logins
  where masked_device_id is not null
  group by masked_device_id order by count(*) desc, masked_device_id limit 1`;

/** The first row of a query. */
export async function rowOf<T extends pg.QueryResultRow>(
  client: pg.Client,
  query: string,
  values: unknown[] = [],
): Promise<T> {
  const { rows } = await client.query<T>(query, values);
  return rows[0]!;
}

/** Tries what must be refused. Returns a line that says whether it was. */
export async function refusal(what: string, attempt: () => Promise<unknown>): Promise<string> {
  try {
    await attempt();
    return `  ${what}  →  succeeded, but must not`;
  } catch (error) {
    return `  ${what}  →  refused, SQLSTATE ${codeOf(error)}`;
  }
}

/** The first characters of a token or hash: enough to tell two apart, and short enough for a terminal. */
export function short(value: string | null | undefined): string {
  if (value === null || value === undefined) return '';
  return value.length > 18 ? `${value.slice(0, 13)}…` : value;
}
