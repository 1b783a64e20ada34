import type pg from 'pg';

/**
 * The settings of a session. A database, a role or a configuration file may set other values, but our statements,
 * graphile-worker's statements and the driver's parsers depend on these. All except the search path and the time zone
 * are Postgres's defaults. Functions do not rely on them, because people call functions from other sessions.
 */
export const SESSION_SETTINGS: Readonly<Record<string, string>> = {
  // The meaning of statements.
  search_path: 'pg_catalog, pg_temp',
  standard_conforming_strings: 'on',
  transform_null_equals: 'off',
  array_nulls: 'on',
  quote_all_identifiers: 'off',
  row_security: 'on',
  restrict_nonsystem_relation_kind: '',
  'plpgsql.extra_errors': 'none',
  // Transactions: a batch is masked in READ COMMITTED, and in a transaction that may write.
  default_transaction_isolation: 'read committed',
  default_transaction_read_only: 'off',
  default_transaction_deferrable: 'off',
  // The format of values, as the driver reads them.
  datestyle: 'ISO, MDY',
  intervalstyle: 'postgres',
  timezone: 'UTC',
  bytea_output: 'hex',
  extra_float_digits: '1',
};

const STATEMENT = Object.entries(SESSION_SETTINGS)
  // The items of a list are quoted one by one. No value contains a quote.
  .map(
    ([name, value]) =>
      `set ${name} = ${value
        .split(', ')
        .map((item) => `'${item}'`)
        .join(', ')}`,
  )
  .join('; ');

/**
 * Applies the settings in one round trip. It uses SET, because poolers refuse `options` in the startup packet, and they
 * would replace those of the connection string.
 *
 * @param client a connection that was just opened
 * @throws any error of `pg`
 */
export async function pinSession(client: pg.ClientBase): Promise<void> {
  await client.query(STATEMENT);
}
