import type pg from 'pg';
import type { LoginEvent } from '../../../local/send/events.ts';
import type { Sent } from './traffic.ts';

/** Counts of what is wrong. All must be 0. */
export interface Findings {
  /** Messages in neither table, nor in the queue, nor in its dead-letter queue. */
  lost: number;
  /** Messages in a table that were never sent. */
  unexpected: number;
  /** Surplus rows of a message in the same table. */
  duplicated: number;
  inBothPlaces: number;
  inNeither: number;
  leftInQueue: number;
  deadLettered: number;
  /** Well-formed messages that are quarantined, and malformed messages that are loaded. */
  misplaced: number;
  /** Logins with a field that differs from what was sent. */
  altered: number;
  /** Equal values with different tokens. */
  splitTokens: number;
  /** Different values, or values of different fields, with the same token. */
  sharedTokens: number;
  /** Vault entries that are missing, that have a wrong value, or whose value was never sent. */
  wrongInVault: number;
  /** Staged rows of batches that are pending, or that are not in the ledger. */
  leftInStaging: number;
  pendingBatches: number;
  /** The difference between the new rows that the ledger counts and the rows of the tables. */
  ledgerOff: number;
}

export interface Checked {
  findings: Findings;
  counts: { sent: number; loaded: number; quarantined: number; values: number; duplicatesSeen: number };
}

interface Login {
  id: string;
  user_id: string;
  device_type: string;
  locale: string | null;
  app_version: string;
  masked_ip: string;
  masked_device_id: string;
}

/** The ids of messages that are still in the queues. */
export interface Remains {
  queue: ReadonlySet<string>;
  deadLetterQueue: ReadonlySet<string>;
}

/** Accounts for every message that was sent, after the pipeline has drained. Only reads, as a superuser. */
export async function check(superuser: pg.Pool, sent: readonly Sent[], remains: Remains): Promise<Checked> {
  const logins = await rows<Login>(
    superuser,
    `select message_id as id, user_id, device_type, locale, app_version, masked_ip, masked_device_id
       from public.user_logins`,
  );
  const quarantined = await rows<{ id: string }>(
    superuser,
    'select message_id as id from staging.quarantine',
  );
  const ledger = await rows<{ new_rows: string; duplicates: string; pending: string }>(
    superuser,
    `select t.inserted + t.quarantined + coalesce(sum(b.inserted + b.quarantined), 0) as new_rows,
            t.duplicates + coalesce(sum(b.duplicates), 0) as duplicates,
            count(*) filter (where b.batch_id is not null and b.acked_at is null and b.lost_at is null) as pending
       from staging.totals t left join staging.batches b on true group by t.singleton`,
  );
  const staged = await rows(
    superuser,
    `select 1 from staging.raw_messages m left join staging.batches b using (batch_id)
      where b.batch_id is null or (b.acked_at is null and b.lost_at is null)`,
  );
  const vault = await rows<{ token: string; value: string }>(
    superuser,
    'select token, value from masking.decrypt_values(array(select token from masking.vault))',
  );

  const places = countByPlace(sent, logins, quarantined, remains);
  const tokens = tokensOf(sent, logins);
  const findings: Findings = {
    ...places,
    altered: countAltered(sent, logins),
    splitTokens: tokens.split,
    sharedTokens: tokens.shared,
    wrongInVault: countWrongInVault(tokens.valueOf, vault),
    leftInStaging: staged.length,
    pendingBatches: Number(ledger[0]?.pending),
    ledgerOff: Math.abs(Number(ledger[0]?.new_rows) - logins.length - quarantined.length),
  };
  const counts = {
    sent: sent.length,
    loaded: logins.length,
    quarantined: quarantined.length,
    values: vault.length,
    duplicatesSeen: Number(ledger[0]?.duplicates),
  };
  return { findings, counts };
}

/** The findings that are not 0, such as `lost 1`. */
export function problemsIn(findings: Findings): string[] {
  return Object.entries(findings)
    .filter(([, count]) => count !== 0)
    .map(([name, count]) => `${name} ${count}`);
}

function countByPlace(
  sent: readonly Sent[],
  logins: readonly Login[],
  quarantined: readonly { id: string }[],
  { queue, deadLetterQueue }: Remains,
) {
  const loaded = new Set(logins.map(({ id }) => id));
  const inQuarantine = new Set(quarantined.map(({ id }) => id));
  const sentIds = new Set(sent.map(({ id }) => id));
  const isAnywhere = (id: string) =>
    loaded.has(id) || inQuarantine.has(id) || queue.has(id) || deadLetterQueue.has(id);
  return {
    lost: sent.filter(({ id }) => !isAnywhere(id)).length,
    unexpected: [...loaded, ...inQuarantine].filter((id) => !sentIds.has(id)).length,
    duplicated: logins.length - loaded.size + (quarantined.length - inQuarantine.size),
    inBothPlaces: [...loaded].filter((id) => inQuarantine.has(id)).length,
    inNeither: sent.filter(({ id }) => !loaded.has(id) && !inQuarantine.has(id)).length,
    leftInQueue: queue.size,
    deadLettered: deadLetterQueue.size,
    misplaced: sent.filter(({ id, event }) => (event === undefined ? loaded : inQuarantine).has(id)).length,
  };
}

function countAltered(sent: readonly Sent[], logins: readonly Login[]): number {
  const events = eventsById(sent);
  return logins.filter((login) => {
    const event = events.get(login.id);
    return (
      event !== undefined &&
      (['user_id', 'device_type', 'locale', 'app_version'] as const).some(
        (field) => login[field] !== event[field],
      )
    );
  }).length;
}

function tokensOf(sent: readonly Sent[], logins: readonly Login[]) {
  const events = eventsById(sent);
  const tokenOf = new Map<string, string>();
  const valueOf = new Map<string, string>();
  let split = 0;
  let shared = 0;
  for (const login of logins) {
    const event = events.get(login.id);
    if (event === undefined) continue;
    for (const [field, token] of [
      ['ip', login.masked_ip],
      ['device_id', login.masked_device_id],
    ] as const) {
      // The field is part of the value: an address and an equal device id must have different tokens.
      const value = `${field} ${event[field]}`;
      if ((tokenOf.get(value) ?? token) !== token) split += 1;
      if ((valueOf.get(token) ?? value) !== value) shared += 1;
      tokenOf.set(value, token);
      valueOf.set(token, value);
    }
  }
  return { split, shared, valueOf };
}

function countWrongInVault(
  valueOf: ReadonlyMap<string, string>,
  vault: readonly { token: string; value: string }[],
): number {
  const wrong = vault.filter(({ token, value }) => valueOf.get(token)?.replace(/^\w+ /, '') !== value);
  const present = new Set(vault.map(({ token }) => token));
  return wrong.length + [...valueOf.keys()].filter((token) => !present.has(token)).length;
}

function eventsById(sent: readonly Sent[]): Map<string, LoginEvent> {
  return new Map(sent.flatMap(({ id, event }) => (event === undefined ? [] : [[id, event] as const])));
}

async function rows<T extends pg.QueryResultRow>(pool: pg.Pool, query: string): Promise<T[]> {
  return (await pool.query<T>(query)).rows;
}
