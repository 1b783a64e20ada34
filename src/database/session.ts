import type pg from 'pg';

/**
 * What a session of ours sets for itself, because a database, a role or a configuration file may have set it
 * otherwise and our statements, graphile-worker's or the driver's parsers depend on it. Each is Postgres's own default
 * but the search path and the time zone. Functions do not rely on these: people call them from sessions of their own.
 */
export const SESSION_SETTINGS: Readonly<Record<string, string>> = {
  // What statements mean.
  search_path: 'pg_catalog, pg_temp',
  standard_conforming_strings: 'on',
  transform_null_equals: 'off',
  array_nulls: 'on',
  quote_all_identifiers: 'off',
  row_security: 'on',
  restrict_nonsystem_relation_kind: '',
  'plpgsql.extra_errors': 'none',
  // What transactions do: a batch is masked in READ COMMITTED, and in a transaction that may write.
  default_transaction_isolation: 'read committed',
  default_transaction_read_only: 'off',
  default_transaction_deferrable: 'off',
  // How values are written: the driver reads these forms.
  datestyle: 'ISO, MDY',
  intervalstyle: 'postgres',
  timezone: 'UTC',
  bytea_output: 'hex',
  extra_float_digits: '1',
};

const STATEMENT = Object.entries(SESSION_SETTINGS)
  // A list's items are quoted one by one; no value of ours holds a quote.
  .map(
    ([name, value]) =>
      `set ${name} = ${value
        .split(', ')
        .map((item) => `'${item}'`)
        .join(', ')}`,
  )
  .join('; ');

/**
 * Sets what a session of ours depends on, in one round trip. By SET statements and not by the startup packet's
 * `options`, which poolers refuse and which would replace those of the connection string.
 *
 * @param client a connection that was opened just now
 * @throws whatever `pg` throws
 */
export async function pinSession(client: pg.ClientBase): Promise<void> {
  await client.query(STATEMENT);
}
