import { readFileSync } from 'node:fs';
import type pg from 'pg';
import { inject } from 'vitest';
import { formsOf } from './forms.ts';

/**
 * Searches for values where none may be: in every column of every logged table, statistics, pg_stat_statements, and the
 * server's log.
 *
 * @param superuser pool of the database to search
 * @param canaries values to search for, in any form, by the name to report
 * @returns where values were found, such as `masking.vault.ciphertext: ip`
 */
export async function findLeaks(
  superuser: pg.Pool,
  canaries: Readonly<Record<string, string | Buffer>>,
): Promise<string[]> {
  const forms = Object.entries(canaries).map(([name, value]) => ({ name, forms: formsOf(value) }));
  const found: string[] = [];
  const search = (place: string, bytes: Buffer) => {
    for (const { name, forms: all } of forms) {
      if (all.some((form) => bytes.includes(form))) found.push(`${place}: ${name}`);
    }
  };
  for (const { place, query } of await places(superuser)) {
    const { rows } = await superuser.query<{ value: Buffer | string | null }>(query);
    search(place, Buffer.concat(rows.map(({ value }) => Buffer.from((value ?? '') as string))));
  }
  search('server log', readFileSync(inject('postgresLog')));
  return found.sort();
}

interface Place {
  place: string;
  /** Returns one column, `value`: bytea unchanged, everything else as text. */
  query: string;
}

/** Logged tables only: they are in WAL, base backups and dumps. Unlogged tables may hold values. */
async function places(superuser: pg.Pool): Promise<Place[]> {
  const { rows } = await superuser.query<Place>(
    `select format('%s.%s.%s', n.nspname, c.relname, a.attname) as place,
            format('select %I%s as value from %I.%I', a.attname,
              case a.atttypid when 'bytea'::regtype then '' else '::text' end, n.nspname, c.relname) as query
       from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
      where c.relkind = 'r' and c.relpersistence = 'p' and a.attnum > 0 and not a.attisdropped
        and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'`,
  );
  return [
    ...rows,
    { place: 'pg_statistic', query: 'select s::text as value from pg_statistic s' },
    { place: 'pg_statistic_ext_data', query: 'select s::text as value from pg_statistic_ext_data s' },
    { place: 'pg_stat_statements', query: 'select query as value from public.pg_stat_statements' },
    { place: 'pg_proc', query: 'select prosrc as value from pg_proc' },
    { place: 'pg_description', query: 'select description as value from pg_description' },
  ];
}
