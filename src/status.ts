import type { SQSClient } from '@aws-sdk/client-sqs';
import type { Pool } from 'pg';
import { countMessages } from './queue/counts.ts';
import { renderTable, wrap } from './table.ts';
import { residueFrom, type Residue, type ResidueRow } from './work/clear-staging.ts';

/** A data key as `status` shows it, without the key itself. */
export interface KeyVersion {
  purpose: 'token' | 'cipher';
  field: 'ip' | 'device_id' | 'body';
  version: number;
  state: 'active' | 'retiring' | 'destroyed';
}

/** A row of `masking.list_keys()`. */
export interface ListedKey extends KeyVersion {
  created_at: Date;
  retiring_at: Date | null;
  destroyed_at: Date | null;
}

/** A rotation that is not done. */
export interface RotationProgress {
  purpose: KeyVersion['purpose'];
  field: KeyVersion['field'];
  from: number;
  to: number;
  state: 'running' | 'paused';
  phase: 'vault' | 'logins' | 'quarantine';
  /** Rows done so far in all phases, including rows that arrived meanwhile. */
  rows: number;
  /** How many rows there were at its first step; null before. */
  total: number | null;
  /** At most 99, because a rotation that is done is not listed. */
  percent: number | null;
  /** Estimated from its speed so far; null while it is paused or nothing is done. */
  seconds_left: number | null;
  /** Why it paused itself; null otherwise. */
  problem: string | null;
}

/** An erasure that is not done, without the user. */
export interface ErasureProgress {
  erasure_id: number;
  phase: 'logins' | 'quarantine';
  logins: number;
}

/**
 * The output of `masked-logins status --json`. Counts are of messages or rows. Ages are in seconds, rounded to a
 * tenth.
 */
export interface Status {
  queue: { visible: number; inFlight: number; deadLettered: number | null };
  staged: { rows: number; oldestUnmaskedSeconds: number | null };
  batches: { total: number; pending: number; lost: number };
  loaded: number;
  duplicates: number;
  /** Loaded messages whose ip is not an address. */
  noAddresses: number;
  /** `total` since the start, `now` in quarantine. */
  quarantined: { total: number; now: number };
  sealed: boolean;
  keys: KeyVersion[];
  rotations: RotationProgress[];
  erasures: ErasureProgress[];
  residue: Residue;
}

/** A row of `staging.status()`. */
interface StatusRow extends Pick<Status, 'sealed' | 'keys' | 'rotations' | 'erasures'> {
  staged_rows: string;
  oldest_unmasked_seconds: number | null;
  pending_batches: string;
  batches: string;
  loaded: string;
  duplicates: string;
  quarantined: string;
  in_quarantine: string;
  lost_batches: string;
  no_addresses: string;
  residue_bodies: ResidueRow['bodies'];
  residue_seconds: ResidueRow['oldest_seconds'];
  residue_slot_seconds: ResidueRow['slot_seconds'];
  residue_held_by: ResidueRow['held_by'];
}

/**
 * Collects the figures from the database and SQS.
 *
 * @param pool of a login that is a member of logins_worker, logins_custodian or logins_auditor
 */
export async function collectStatus(pool: Pool, sqs: SQSClient, queueUrl: string): Promise<Status> {
  const [{ rows }, queue] = await Promise.all([
    pool.query<StatusRow>('select * from staging.status()'),
    countMessages(sqs, queueUrl),
  ]);
  const row = rows[0]!;
  return {
    queue: { visible: queue.visible, inFlight: queue.inFlight, deadLettered: queue.deadLettered },
    staged: { rows: Number(row.staged_rows), oldestUnmaskedSeconds: toTenth(row.oldest_unmasked_seconds) },
    batches: {
      total: Number(row.batches),
      pending: Number(row.pending_batches),
      lost: Number(row.lost_batches),
    },
    loaded: Number(row.loaded),
    duplicates: Number(row.duplicates),
    noAddresses: Number(row.no_addresses),
    quarantined: { total: Number(row.quarantined), now: Number(row.in_quarantine) },
    sealed: row.sealed,
    keys: row.keys,
    rotations: row.rotations,
    erasures: row.erasures,
    residue: residueFrom({
      bodies: row.residue_bodies,
      oldest_seconds: row.residue_seconds,
      slot_seconds: row.residue_slot_seconds,
      held_by: row.residue_held_by,
    }),
  };
}

/**
 * The figures as a table: first what needs attention, then in the order of a message's journey.
 *
 * @param columns the width to fit into; undefined if nothing limits it
 */
export function renderStatus(status: Status, columns?: number): string {
  const { queue, staged, batches, quarantined } = status;
  const age = staged.oldestUnmaskedSeconds;
  const rows: (string | number)[][] = [
    ['database', status.sealed ? 'SEALED: masking waits for the key-encryption key' : 'unsealed'],
    ['queue', `${queue.visible} visible, ${queue.inFlight} in flight`],
    ['dead-lettered', queue.deadLettered ?? 'no dead-letter queue'],
    [
      'staged, not yet masked',
      `${staged.rows} rows${age === null ? '' : `, the oldest for ${age.toFixed(1)} s`}`,
    ],
    ['acknowledged, still on disk', renderResidue(status.residue)],
    ['batches', `${batches.total}, of which ${batches.pending} pending`],
    [
      'lost batches',
      `${batches.lost}${batches.lost > 0 ? ' (a crash emptied staging; SQS delivered them again)' : ''}`,
    ],
    ['loaded', status.loaded],
    ['duplicates', status.duplicates],
    ['quarantined', `${quarantined.total}, of which ${quarantined.now} still there`],
    ['keys', status.keys.map(renderKey).join('\n') || 'none yet: made at the first unsealing'],
  ];
  if (status.noAddresses > 0) {
    const hint = 'a port or a forwarded list? see "What senders write" in docs/operations.md';
    rows.push(['ip values that are no address', `${status.noAddresses} (${hint})`]);
  }
  if (status.rotations.length > 0) rows.push(['rotations', status.rotations.map(renderRotation).join('\n')]);
  if (status.erasures.length > 0) rows.push(['erasures', status.erasures.map(renderErasure).join('\n')]);
  return renderTable(rows, { columns });
}

/** The keys as a table, and a line for each rotation that is under way. */
export function renderKeys(keys: ListedKey[], rotations: RotationProgress[], columns?: number): string {
  // With a date to the millisecond it is 72 columns wide.
  const isNarrow = columns !== undefined && columns < 72;
  const table = renderTable(
    keys.map((key) => {
      const since = (key.destroyed_at ?? key.retiring_at ?? key.created_at).toISOString();
      return [
        key.purpose,
        key.field,
        key.version,
        key.state,
        isNarrow ? since.replace(/T(.*)\..*/, ' $1Z') : since,
      ];
    }),
    { head: ['purpose', 'field', 'version', 'state', 'since'], columns },
  );
  return [table, ...rotations.map((rotation) => wrap(renderRotation(rotation), columns))].join('\n');
}

/** A rotation in one line: what it is, its progress, and how long it may still take. */
export function renderRotation(rotation: RotationProgress): string {
  const { purpose, field, from, to, state, phase, rows, total, percent, seconds_left: left } = rotation;
  const done = total === null ? `${rows} rows done` : `${rows} of ${total} rows done (${percent ?? 99} %)`;
  return [
    `${field} ${purpose} ${from} → ${to}: ${state} in ${phase}, ${done}`,
    ...(left === null ? [] : [`about ${renderDuration(left)} left`]),
    ...(rotation.problem === null ? [] : [rotation.problem]),
  ].join('; ');
}

function renderDuration(seconds: number): string {
  if (seconds < 120) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 120 ? `${minutes} min` : `${Math.round(minutes / 60)} h`;
}

function toTenth(seconds: number | null): number | null {
  return seconds === null ? null : Math.round(seconds * 10) / 10;
}

function renderResidue({ bodies, oldestSeconds, slotSeconds, heldBy }: Residue): string {
  const facts = [
    bodies === null ? 'not known: a lock on staging is in the way' : `${bodies} bodies`,
    ...(oldestSeconds === null ? [] : [`the oldest for ${oldestSeconds} s`]),
    ...(slotSeconds === null ? [] : [`a slot waits to be emptied for ${slotSeconds} s`]),
    ...(heldBy.length === 0 ? [] : [`held by pid ${heldBy.join(', ')}`]),
  ];
  return facts.join(', ');
}

function renderErasure({ erasure_id: id, phase, logins }: ErasureProgress): string {
  return `${id}: in ${phase}, ${logins} logins done`;
}

function renderKey({ purpose, field, version, state }: KeyVersion): string {
  return `${field} ${purpose} ${version} ${state}`;
}
