/**
 * Lists privileges from the catalogs, one fact a line. Objects of extensions are left out, because USAGE on
 * their schema protects them. All monthly partitions of user_logins are one line.
 */
import type { Pool, PoolClient } from 'pg';

export const ROLES = [
  'logins_owner',
  'logins_loader',
  'logins_worker',
  'logins_analyst',
  'logins_unmasker',
  'logins_approver',
  'logins_custodian',
  'logins_auditor',
];

/** All schemas except those of Postgres, with any owner. */
const OURS = `n.nspname !~ '^pg_' and n.nspname <> 'information_schema'`;
const NO_EXTENSION = (catalog: string, oid: string) =>
  `not exists (select from pg_depend d where d.classid = '${catalog}'::regclass and d.objid = ${oid} and d.deptype = 'e')`;
/** The objects of graphile-worker count as one. */
const NAME = `case n.nspname when 'graphile_worker' then 'graphile_worker.*'
  else n.nspname || '.' || regexp_replace(c.relname, '_\\d{4}_\\d{2}$', '_YYYY_MM') end`;
const KIND = `case c.relkind when 'r' then 'table' when 'p' then 'table' when 'v' then 'view' when 'S' then 'sequence'
  else 'relation ' || c.relkind::text end`;
const GRANTEE = `case a.grantee when 0 then 'PUBLIC' else pg_get_userbyid(a.grantee) end`;
const WITH_GRANT = `case when a.is_grantable then ' with grant option' else '' end`;
const SIGNATURE = `case n.nspname when 'graphile_worker' then 'graphile_worker.*'
  else n.nspname || '.' || p.proname || '(' || oidvectortypes(p.proargtypes) || ')' end`;

const QUERIES = {
  owners: `
    select 'schema ' || n.nspname || ' is owned by ' || pg_get_userbyid(n.nspowner) from pg_namespace n where ${OURS}
    union all
    select ${KIND} || ' ' || ${NAME} || ' is owned by ' || pg_get_userbyid(c.relowner)
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where ${OURS} and c.relkind not in ('i', 'I', 't', 'c') and ${NO_EXTENSION('pg_class', 'c.oid')}
    union all
    select 'function ' || ${SIGNATURE} || ' is owned by ' || pg_get_userbyid(p.proowner)
        || case when p.prosecdef then ', whose rights it has' else '' end
      from pg_proc p join pg_namespace n on n.oid = p.pronamespace
     where ${OURS} and ${NO_EXTENSION('pg_proc', 'p.oid')}`,
  grants: `
    select ${GRANTEE} || ' may ' || a.privilege_type || ' schema ' || n.nspname || ${WITH_GRANT}
      from pg_namespace n cross join aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
     where ${OURS} and a.grantee <> n.nspowner
    union all
    select ${GRANTEE} || ' may ' || a.privilege_type || ' ' || ${KIND} || ' ' || ${NAME} || ${WITH_GRANT}
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     cross join aclexplode(coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))) a
     where ${OURS} and c.relkind not in ('i', 'I', 't', 'c') and a.grantee <> c.relowner
    union all
    select ${GRANTEE} || ' may ' || a.privilege_type || ' column ' || ${NAME} || '.' || t.attname || ${WITH_GRANT}
      from pg_attribute t join pg_class c on c.oid = t.attrelid join pg_namespace n on n.oid = c.relnamespace
     cross join aclexplode(t.attacl) a
     where ${OURS}
    union all
    select ${GRANTEE} || ' may ' || a.privilege_type || ' function ' || ${SIGNATURE} || ${WITH_GRANT}
      from pg_proc p join pg_namespace n on n.oid = p.pronamespace
     cross join aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
     where ${OURS} and a.grantee <> p.proowner and ${NO_EXTENSION('pg_proc', 'p.oid')}
    union all
    select ${GRANTEE} || ' may ' || a.privilege_type || ' type ' || n.nspname || '.' || t.typname || ${WITH_GRANT}
      from pg_type t join pg_namespace n on n.oid = t.typnamespace cross join aclexplode(t.typacl) a
     where ${OURS} and a.grantee <> t.typowner
    union all
    select 'by default ' || ${GRANTEE} || ' may ' || a.privilege_type || ' what ' || pg_get_userbyid(d.defaclrole)
        || ' makes: ' || d.defaclobjtype::text || coalesce(' in ' || n.nspname, '')
      from pg_default_acl d left join pg_namespace n on n.oid = d.defaclnamespace cross join aclexplode(d.defaclacl) a`,
  policies: `
    select ${KIND} || ' ' || ${NAME} || case when c.relrowsecurity then ' has' else ' has no' end || ' row-level security'
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where ${OURS} and c.relkind in ('r', 'p') and ${NO_EXTENSION('pg_class', 'c.oid')}
    union all
    select coalesce(nullif(r.role, 0::oid)::regrole::text, 'PUBLIC') || ' gets to rows of ' || ${NAME} || ' by '
        || case p.polcmd when 'r' then 'select' when '*' then 'every command' else 'command ' || p.polcmd::text end
        || coalesce(' where ' || pg_get_expr(p.polqual, c.oid), '')
        || coalesce(' checked by ' || pg_get_expr(p.polwithcheck, c.oid), '')
      from pg_policy p join pg_class c on c.oid = p.polrelid join pg_namespace n on n.oid = c.relnamespace
     cross join unnest(p.polroles) r (role)`,
  memberships: `
    select pg_get_userbyid(m.member) || ' is a member of ' || pg_get_userbyid(m.roleid)
        || case when m.inherit_option then ', inherits' else '' end
        || case when m.set_option then ', may set role' else '' end
        || case when m.admin_option then ', may admit others' else '' end
      from pg_auth_members m
     where pg_get_userbyid(m.member) ~ '^logins_'`,
  abilities: `
    select r.role || ' can ' || p.privilege || ' ' || ${KIND} || ' ' || ${NAME}
      from unnest($1::text[]) r (role)
     cross join unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger']) p (privilege)
     cross join pg_class c join pg_namespace n on n.oid = c.relnamespace
     where ${OURS} and c.relkind not in ('i', 'I', 't', 'c', 'S') and has_schema_privilege(r.role, n.oid, 'usage')
       and has_table_privilege(r.role, c.oid, p.privilege)
    union all
    select r.role || ' can ' || p.privilege || ' columns of ' || ${NAME}
      from unnest($1::text[]) r (role)
     cross join unnest(array['select', 'insert', 'update', 'references']) p (privilege)
     cross join pg_class c join pg_namespace n on n.oid = c.relnamespace
     where ${OURS} and c.relkind not in ('i', 'I', 't', 'c', 'S') and has_any_column_privilege(r.role, c.oid, p.privilege)
       and not has_table_privilege(r.role, c.oid, p.privilege)
    union all
    select r.role || ' can use sequence ' || ${NAME}
      from unnest($1::text[]) r (role) cross join pg_class c join pg_namespace n on n.oid = c.relnamespace
     where ${OURS} and c.relkind = 'S' and has_schema_privilege(r.role, n.oid, 'usage')
       and has_sequence_privilege(r.role, c.oid, 'usage, select, update')
    union all
    select r.role || ' can call ' || ${SIGNATURE}
      from unnest($1::text[]) r (role) cross join pg_proc p join pg_namespace n on n.oid = p.pronamespace
     where ${OURS} and has_schema_privilege(r.role, n.oid, 'usage') and has_function_privilege(r.role, p.oid, 'execute')
       and ${NO_EXTENSION('pg_proc', 'p.oid')}
    union all
    select r.role || ' can create in schema ' || n.nspname
      from unnest($1::text[]) r (role) cross join pg_namespace n
     where ${OURS} and has_schema_privilege(r.role, n.oid, 'create')`,
} as const;

export type About = keyof typeof QUERIES;

/**
 * @param about `owners`; `grants` to everyone except the owner, including PUBLIC; `policies`: the tables with
 *   row-level security and their policies; `memberships`; `abilities`: what each role except the owner can do
 *   through ownership, grants, memberships and PUBLIC
 */
export async function factsOf(db: Pool | PoolClient, about: About): Promise<string[]> {
  const query = `select distinct fact collate "C" as fact from (${QUERIES[about]}) f (fact) order by 1`;
  const { rows } = await db.query<{ fact: string }>(
    query,
    about === 'abilities' ? [ROLES.filter((role) => role !== 'logins_owner')] : [],
  );
  return rows.map(({ fact }) => fact);
}
