import Table from 'cli-table3';
import pg from 'pg';
import type { StackLogin } from '../config.ts';
import { codeOf } from '../errors.ts';

export interface Totals {
  loaded: number;
  quarantined: number;
}

/** How far loading is, from the ledger. */
export async function totalsOf(database: pg.Client): Promise<Totals> {
  const { rows } = await database.query<{ loaded: string; quarantined: string }>(
    'select coalesce(sum(inserted), 0) as loaded, coalesce(sum(quarantined), 0) as quarantined from staging.batches',
  );
  return { loaded: Number(rows[0]?.loaded), quarantined: Number(rows[0]?.quarantined) };
}

/** What an analyst sees: the logins from the device that was seen most, and a few others. */
const SAMPLE = `
  with busiest as (
    select masked_device_id from public.user_logins
    where masked_device_id is not null
    group by masked_device_id order by count(*) desc, masked_device_id limit 1
  )
  (select l.* from public.user_logins l join busiest using (masked_device_id) order by create_date limit 3)
  union all
  (select l.* from public.user_logins l order by create_date limit 3)`;

const SHARED = `
  select count(*) as tokens,
         count(*) filter (where logins > 1) as shared,
         coalesce(sum(logins) filter (where logins > 1), 0) as logins,
         max(logins) as most
  from (select count(*) as logins from public.user_logins where %s is not null group by %s) as per_token`;

/**
 * Shows what came of the events, each part as the login that is there for it.
 *
 * @returns whether loaded and quarantined add up to what was sent, and nothing is left in the queue
 */
export async function report(options: {
  urls: Record<StackLogin, string>;
  sent: number;
  queued: number;
  print: (text: string) => void;
}): Promise<boolean> {
  const { urls, sent, queued, print } = options;
  await withClient(urls.analyst, async (analyst) => {
    print(
      `\nWhat an analyst sees; the first three are the same device, whichever it is:\n${await sample(analyst)}`,
    );
    print(`\nDuplicates, found without knowing an address or a device:\n${await shared(analyst)}`);
    print(`\nAn analyst tries the vault:\n${await refusal(analyst)}`);
  });
  // No role reads the quarantine: this is the superuser of a stack on your own machine.
  return withClient(urls.superuser, async (superuser) => {
    print(`\nMalformed messages, in quarantine, their bodies encrypted:\n${await reasons(superuser)}`);
    const { rows } = await superuser.query<{ loaded: string; quarantined: string }>(
      'select (select count(*) from public.user_logins) as loaded, (select count(*) from staging.quarantine) as quarantined',
    );
    const loaded = Number(rows[0]?.loaded);
    const quarantined = Number(rows[0]?.quarantined);
    const adds = sent === loaded + quarantined && queued === 0;
    print(
      `\nTotals: ${sent} sent ${adds ? '=' : 'but'} ${loaded} loaded + ${quarantined} quarantined, ${queued} left in the queue.` +
        (adds ? '' : ' They do not add up.'),
    );
    return adds;
  });
}

async function sample(analyst: pg.Client): Promise<string> {
  const { rows } = await analyst.query<Record<string, string | null>>(SAMPLE);
  const columns = ['user_id', 'device_type', 'masked_ip', 'masked_device_id', 'locale', 'app_version'];
  const table = new Table({ head: columns, style: { head: [], border: [] } });
  for (const row of rows) table.push(columns.map((column) => short(row[column])));
  return table.toString();
}

async function shared(analyst: pg.Client): Promise<string> {
  const table = new Table({
    head: ['', 'different', 'seen more than once', 'logins from those', 'most logins from one'],
    style: { head: [], border: [] },
  });
  for (const [name, column] of [
    ['addresses', 'masked_ip'],
    ['devices', 'masked_device_id'],
  ] as const) {
    const { rows } = await analyst.query<Record<string, string>>(SHARED.replaceAll('%s', column));
    const row = rows[0] ?? {};
    table.push([name, row['tokens'], row['shared'], row['logins'], row['most']]);
  }
  return table.toString();
}

async function refusal(analyst: pg.Client): Promise<string> {
  const statement = 'select * from masking.vault';
  try {
    await analyst.query(statement);
    return `  ${statement}  →  answered, and should not have been`;
  } catch (error) {
    return `  ${statement}  →  refused, SQLSTATE ${codeOf(error)}`;
  }
}

async function reasons(superuser: pg.Client): Promise<string> {
  const { rows } = await superuser.query<{ reason: string; messages: string }>(
    'select reason, count(*) as messages from staging.quarantine group by reason order by messages desc, reason',
  );
  const table = new Table({ head: ['reason', 'messages'], style: { head: [], border: [] } });
  for (const { reason, messages } of rows) table.push([reason, messages]);
  return table.toString();
}

/** Enough of a token to tell two apart, and few enough characters for a terminal. */
function short(value: string | null | undefined): string {
  if (value === null || value === undefined) return '';
  return value.length > 18 ? `${value.slice(0, 13)}…` : value;
}

async function withClient<T>(connectionString: string, use: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ connectionString, application_name: 'masked-logins demo' });
  await client.connect();
  try {
    return await use(client);
  } finally {
    await client.end();
  }
}
