import type { StackLogin } from '../stack/logins.ts';
import { withClient } from '../postgres/client.ts';
import { BUSIEST_DEVICE, refusal, rowOf, short } from './database.ts';

const REASON = 'DEMO-1 the device that logs in most';

const BUSIEST = `
  select masked_ip, masked_device_id, user_id from public.user_logins
  where masked_device_id = (${BUSIEST_DEVICE})
  order by create_date limit 1`;

const REQUEST = `select unmask.request('ip', array[$1]::uuid[], reason => $2) as request_id`;

const REVEAL = `
  select l.user_id, l.masked_ip, r.value, count(*) as logins
  from public.user_logins l join unmask.reveal($1) r on r.token = l.masked_ip
  group by l.user_id, l.masked_ip, r.value order by logins desc, l.user_id limit 1`;

/** What a DBA requested and saw. */
export interface Revealed {
  requestId: string;
  value: string;
}

/** A DBA reveals an address, after a request that is in the audit log. An analyst cannot. */
export async function recover(
  urls: Record<StackLogin, string>,
  print: (text: string) => void,
): Promise<Revealed> {
  const revealed = await withClient(urls.unmasker, async (dba) => {
    const { masked_ip: token } = await rowOf<{ masked_ip: string }>(dba, BUSIEST);
    await dba.query('begin');
    const early = await rowOf<{ request_id: string }>(dba, REQUEST, [token, REASON]);
    const refused = await refusal('begin; request; reveal, nothing committed', () =>
      dba.query('select * from unmask.reveal($1)', [early.request_id]),
    );
    await dba.query('rollback');

    const { request_id: requestId } = await rowOf<{ request_id: string }>(dba, REQUEST, [token, REASON]);
    const row = await rowOf<Record<string, string>>(dba, REVEAL, [requestId]);
    print(
      `\nA DBA needs the address of that device. The request must be committed first:\n${refused}` +
        `\n  request, commit, reveal  →  ${short(row['masked_ip'])} is ${row['value']}: ${row['logins']} logins of user ${short(row['user_id'])}`,
    );
    return { requestId, value: row['value']! };
  });
  await withClient(urls.analyst, async (analyst) => {
    const refused = await refusal('select * from unmask.reveal(…)', () =>
      analyst.query('select * from unmask.reveal($1)', [revealed.requestId]),
    );
    print(`\nAn analyst tries the same:\n${refused}`);
  });
  return revealed;
}

/** Reveals the value of a request again. */
export function revealAgain(urls: Record<StackLogin, string>, { requestId }: Revealed): Promise<string> {
  return withClient(urls.unmasker, async (dba) => {
    const row = await rowOf<Record<string, string>>(dba, REVEAL, [requestId]);
    return row['value']!;
  });
}

/** Verifies the audit log as an auditor. */
export function verify(urls: Record<StackLogin, string>): Promise<string> {
  return withClient(urls.auditor, async (auditor) => {
    const row = await rowOf<{ intact: boolean; events: string; head_event_id: string; head_hash: string }>(
      auditor,
      'select * from audit.verify()',
    );
    return `${row.intact ? 'intact' : 'BROKEN'}, ${row.events} events, head ${row.head_event_id} with hash ${short(row.head_hash)}`;
  });
}
