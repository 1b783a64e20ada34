import Table from 'cli-table3';
import type pg from 'pg';
import type { StackLogin } from '../stack/logins.ts';
import { withClient } from '../postgres/client.ts';
import { BUSIEST_DEVICE, refusal, rowOf, short } from './database.ts';

/** Some logins of the device that was seen most, and a few others. */
const SAMPLE = `
  with busiest as (${BUSIEST_DEVICE})
  (select l.* from public.user_logins l join busiest using (masked_device_id) order by create_date limit 3)
  union all
  (select l.* from public.user_logins l order by create_date limit 3)`;

const SHARED = `
  select count(*) as tokens,
         count(*) filter (where logins > 1) as shared,
         coalesce(sum(logins) filter (where logins > 1), 0) as logins,
         max(logins) as most
  from (select count(*) as logins from public.user_logins where %s is not null group by %s) as per_token`;

/** Shows what became of the events, each part as a login that may see it. */
export async function report(urls: Record<StackLogin, string>, print: (text: string) => void): Promise<void> {
  await withClient(urls.analyst, async (analyst) => {
    print(
      `\nWhat an analyst sees. The first three logins are from the same device:\n${await sample(analyst)}`,
    );
    print(`\nRepeated addresses and devices, found by their tokens:\n${await shared(analyst)}`);
    const statement = 'select * from masking.vault';
    print(
      `\nAn analyst tries to read the vault:\n${await refusal(statement, () => analyst.query(statement))}`,
    );
  });
  // No role may read the quarantine. This is the superuser of the stack.
  await withClient(urls.superuser, async (superuser) => {
    print(`\nMalformed messages are in quarantine, with encrypted bodies:\n${await reasons(superuser)}`);
  });
}

/** Shows where all events are. Returns whether the numbers add up and the queue is empty. */
export function reportTotals(options: {
  urls: Record<StackLogin, string>;
  sent: number;
  queued: number;
  print: (text: string) => void;
}): Promise<boolean> {
  const { urls, sent, queued, print } = options;
  return withClient(urls.superuser, async (superuser) => {
    const row = await rowOf<{ loaded: string; quarantined: string }>(
      superuser,
      'select (select count(*) from public.user_logins) as loaded, (select count(*) from staging.quarantine) as quarantined',
    );
    const loaded = Number(row.loaded);
    const quarantined = Number(row.quarantined);
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

async function reasons(superuser: pg.Client): Promise<string> {
  const { rows } = await superuser.query<{ reason: string; messages: string }>(
    'select reason, count(*) as messages from staging.quarantine group by reason order by messages desc, reason',
  );
  const table = new Table({ head: ['reason', 'messages'], style: { head: [], border: [] } });
  for (const { reason, messages } of rows) table.push([reason, messages]);
  return table.toString();
}
