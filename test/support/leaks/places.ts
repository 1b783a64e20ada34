import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import type pg from 'pg';

/** Bytes to search, and where they are from. */
export interface Place {
  place: string;
  bytes: Buffer;
}

/** What a superuser can read with SQL: statistics, views of the server's state, every column of every logged table. */
export async function* sqlPlaces(superuser: pg.Pool): AsyncGenerator<Place> {
  for (const { place, query } of [...(await columns(superuser)), ...SYSTEM]) {
    const { rows } = await superuser.query<{ value: Buffer | string | null }>(query);
    const values = rows.flatMap(({ value }) => [Buffer.from((value ?? '') as string), SEPARATOR]);
    yield { place, bytes: Buffer.concat(values) };
  }
}

/** Separates values, so that two adjacent ones do not form a third. */
const SEPARATOR = Buffer.from('\n');

const SYSTEM = [
  { place: 'pg_statistic', query: 'select s::text as value from pg_statistic s' },
  { place: 'pg_statistic_ext_data', query: 'select s::text as value from pg_statistic_ext_data s' },
  { place: 'pg_stats', query: 'select s::text as value from pg_stats s' },
  { place: 'pg_stat_statements', query: 'select query as value from public.pg_stat_statements' },
  { place: 'pg_stat_activity', query: 'select s::text as value from pg_stat_activity s' },
  { place: 'pg_proc', query: 'select p::text as value from pg_proc p' },
  { place: 'pg_rewrite', query: 'select pg_get_viewdef(ev_class) as value from pg_rewrite' },
  { place: 'pg_description', query: 'select description as value from pg_description' },
  { place: 'pg_db_role_setting', query: 'select s::text as value from pg_db_role_setting s' },
];

/** Every column of every logged table: bytea unchanged, everything else as text. */
async function columns(superuser: pg.Pool): Promise<{ place: string; query: string }[]> {
  const { rows } = await superuser.query<{ place: string; query: string }>(
    `select format('%s.%s.%s', n.nspname, c.relname, a.attname) as place,
            format('select %I%s as value from %I.%I', a.attname,
              case a.atttypid when 'bytea'::regtype then '' else '::text' end, n.nspname, c.relname) as query
       from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
      where c.relkind in ('r', 'm') and c.relpersistence = 'p' and a.attnum > 0 and not a.attisdropped
        and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'`,
  );
  return rows;
}

/**
 * All files of the data directory, including WAL, except those of unlogged relations with their TOAST tables and
 * indexes. The init forks of unlogged relations are included, because they are logged.
 */
export async function* filePlaces(superuser: pg.Pool, dataDirectory: string): AsyncGenerator<Place> {
  await superuser.query('checkpoint');
  const { rows } = await superuser.query<{ file: string }>(
    `select pg_relation_filepath(c.oid) as file from pg_class c
      where c.relpersistence = 'u' and c.relfilenode <> 0`,
  );
  const unlogged = new Set(rows.map(({ file }) => file));
  for (const entry of readdirSync(dataDirectory, { recursive: true, withFileTypes: true })) {
    const file = path.relative(dataDirectory, path.join(entry.parentPath, entry.name));
    // A relation has segments and forks, such as 16384, 16384.1 and 16384_fsm.
    if (!entry.isFile() || unlogged.has(file.replace(/(?:\.\d+|_fsm|_vm)$/, ''))) continue;
    const bytes = contentOf(path.join(dataDirectory, file));
    if (bytes !== undefined) yield { place: kindOf(file), bytes };
  }
}

function kindOf(file: string): string {
  if (file.startsWith('pg_wal/')) return 'WAL';
  return file.includes('pgsql_tmp') ? 'temporary files' : 'data directory';
}

/** Undefined if the server has removed the file in the meantime. */
function contentOf(file: string): Buffer | undefined {
  try {
    return readFileSync(file);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}
