import type { Pool, PoolClient } from 'pg';

const SCHEMAS = `n.nspname in ('public', 'staging', 'masking', 'unmask', 'audit', 'crypto')`;
/** A task creates the monthly partitions, not a migration. */
const NO_MONTH = `c.relname !~ '^user_logins_\\d{4}_\\d{2}'`;
const NO_EXTENSION = (catalog: string, oid: string) =>
  `not exists (select from pg_depend d where d.classid = '${catalog}'::regclass and d.objid = ${oid} and d.deptype = 'e')`;
const RELATION = `join pg_namespace n on n.oid = c.relnamespace where ${SCHEMAS} and ${NO_MONTH} and c.relkind <> 't'`;
const NAME = `n.nspname || '.' || c.relname`;

/** Each query returns a name and a definition. */
const QUERIES = {
  schema: `select n.nspname, concat_ws(' | ', n.nspowner::regrole, n.nspacl) from pg_namespace n where ${SCHEMAS}`,
  relation: `
    select ${NAME}, concat_ws(' | ', c.relkind, c.relowner::regrole, c.relacl, c.relpersistence, c.relrowsecurity,
             c.relforcerowsecurity, c.reloptions, obj_description(c.oid, 'pg_class'), pg_get_partkeydef(c.oid),
             pg_get_expr(c.relpartbound, c.oid))
      from pg_class c ${RELATION}`,
  column: `
    select ${NAME} || '.' || a.attnum || '.' || a.attname,
           concat_ws(' | ', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attstorage, a.attcompression,
             coalesce(a.attstattarget, -1), a.attacl, a.attcollation::regcollation, a.attidentity, a.attgenerated,
             pg_get_expr(e.adbin, e.adrelid), col_description(c.oid, a.attnum))
      from pg_attribute a
      join pg_class c on c.oid = a.attrelid
      left join pg_attrdef e on (e.adrelid, e.adnum) = (a.attrelid, a.attnum)
      ${RELATION} and a.attnum > 0`,
  constraint: `
    select ${NAME} || '.' || o.conname, pg_get_constraintdef(o.oid)
      from pg_constraint o join pg_class c on c.oid = o.conrelid ${RELATION}`,
  index: `
    select ${NAME}, pg_get_indexdef(c.oid) from pg_class c ${RELATION} and c.relkind in ('i', 'I')`,
  view: `select ${NAME}, pg_get_viewdef(c.oid) from pg_class c ${RELATION} and c.relkind = 'v'`,
  trigger: `
    select ${NAME} || '.' || t.tgname, pg_get_triggerdef(t.oid) || t.tgenabled::text
      from pg_trigger t join pg_class c on c.oid = t.tgrelid ${RELATION} and not t.tgisinternal`,
  policy: `
    select ${NAME} || '.' || p.polname, concat_ws(' | ', p.polcmd, p.polroles::regrole[], pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)) from pg_policy p join pg_class c on c.oid = p.polrelid ${RELATION}`,
  function: `
    select n.nspname || '.' || p.proname || '(' || oidvectortypes(p.proargtypes) || ')',
           concat_ws(' | ', pg_get_functiondef(p.oid), p.proowner::regrole, p.proacl, obj_description(p.oid, 'pg_proc'))
      from pg_proc p join pg_namespace n on n.oid = p.pronamespace
     where ${SCHEMAS} and ${NO_EXTENSION('pg_proc', 'p.oid')}`,
  'default privilege': `
    select d.defaclrole::regrole::text || ' ' || d.defaclobjtype::text, concat_ws(' | ', d.defaclnamespace::regnamespace, d.defaclacl)
      from pg_default_acl d`,
  type: `
    select n.nspname || '.' || t.typname, concat_ws(' | ', t.typtype, t.typacl, t.typbasetype::regtype)
      from pg_type t join pg_namespace n on n.oid = t.typnamespace
     where ${SCHEMAS} and t.typtype in ('d', 'e', 'r', 'm')`,
  extension: 'select e.extname::text, e.extnamespace::regnamespace::text from pg_extension e',
};

/** All definitions in the project's schemas, from the catalogs, by `kind name`. */
export async function definitionsOf(db: Pool | PoolClient): Promise<Record<string, string>> {
  const definitions: Record<string, string> = {};
  for (const [kind, query] of Object.entries(QUERIES)) {
    const { rows } = await db.query<{ name: string; definition: string }>(
      `select name, definition from (${query}) q (name, definition) order by name collate "C"`,
    );
    for (const { name, definition } of rows) definitions[`${kind} ${name}`] = definition;
  }
  return definitions;
}
