/**
 * Tables for locks.test.ts: what each login can hold in an open transaction, and what must continue
 * meanwhile.
 */

export const LOGINS = [
  'loader',
  'worker',
  'analyst',
  'unmasker',
  'approver',
  'custodian',
  'auditor',
] as const;
export type Login = (typeof LOGINS)[number];

export const LOCK_MODES = [
  'access share',
  'row share',
  'row exclusive',
  'share update exclusive',
  'share',
  'share row exclusive',
  'exclusive',
  'access exclusive',
];

/** Longer than any of these calls may wait for its locks, which is up to two seconds. */
export const STUCK_AFTER = '6s';

const intoInbox = (batch: string) => `insert into staging.inbox values
  ('${batch}', array[gen_random_uuid()], '{receipt}', array[now()], '{1}', array[convert_to('{"user_id": "u"}', 'UTF8')])`;

/** Calls that must continue, each with its login. Each of them has work to do. */
export const CALLS: Record<string, [Login, string]> = {
  mask_batch: ['worker', `select masking.mask_batch('$staged')`],
  submit_batch: ['loader', `${intoInbox('$new')}; select staging.submit_batch('$new', 1)`],
  heartbeat: ['worker', `select staging.heartbeat('alive')`],
  recycle_slots: ['worker', 'select staging.recycle_slots()'],
  sweep_batches: ['worker', `select staging.sweep_batches(interval '0')`],
  clean_ledger: ['worker', 'select staging.clean_ledger()'],
  maintain_partitions: ['worker', 'select staging.maintain_partitions(6)'],
  retention: ['worker', 'select masking.retention()'],
  rotate_step: ['worker', 'select masking.rotate_step(5)'],
  erase_step: ['worker', 'select masking.erase_step(5)'],
  purge_step: ['worker', 'select masking.purge_step(5)'],
};
/** These must succeed. The other calls may give up if they do not get a lock. */
export const MUST_SUCCEED = new Set(['mask_batch', 'submit_batch']);

/** The calls of each login that change something. Their transaction stays open. */
export const HELD_CALLS: Record<Login, Record<string, string>> = {
  loader: { 'staging.submit_batch': `${intoInbox('$mine')}; select staging.submit_batch('$mine', 1)` },
  worker: {
    'masking.mask_batch': `select masking.mask_batch('$other')`,
    'staging.close_batch': `select staging.close_batch('$old')`,
    'staging.heartbeat': `select staging.heartbeat('alive')`,
    'staging.recycle_slots': 'select staging.recycle_slots()',
    'masking.wipe_kek': 'select masking.wipe_kek()',
    'staging.sweep_batches': `select staging.sweep_batches(interval '0')`,
    'staging.clean_ledger': 'select staging.clean_ledger()',
    'staging.maintain_partitions': 'select staging.maintain_partitions(6)',
    'masking.retention': 'select masking.retention()',
    'masking.rotate_step': 'select masking.rotate_step(5)',
    'masking.erase_step': 'select masking.erase_step(5)',
    'masking.purge_step': 'select masking.purge_step(5)',
    'staging.replay': `select staging.replay('{$quarantined}')`,
    'masking.kek_inbox': `insert into masking.kek_inbox values ('$kek')`,
  },
  analyst: {},
  unmasker: {
    'unmask.request': `select unmask.request('ip', array(select masked_ip from public.user_logins limit 3), 'why')`,
    'unmask.request_user': `select unmask.request_user('user', 'why')`,
    'unmask.request_quarantined': `select unmask.request_quarantined('{$quarantined}', 'why')`,
    'unmask.request_find': `select unmask.request_find('ip', '203.0.113.9', 'why')`,
    'unmask.reveal': `select unmask.reveal('$request')`,
    'unmask.find': `select unmask.find('ip', '203.0.113.9')`,
  },
  approver: { 'unmask.approve': `select unmask.approve('$pending')` },
  custodian: {
    'masking.seal': 'select masking.seal()',
    'masking.wipe_kek': 'select masking.wipe_kek()',
    'masking.rotate': `select masking.rotate('cipher', 'device_id')`,
    'masking.pause_rotation': 'select masking.pause_rotation()',
    'masking.resume_rotation': 'select masking.resume_rotation()',
    'masking.destroy_key': `select masking.destroy_key('cipher', $retiring)`,
    'masking.erase_user': `select masking.erase_user('another', 'why')`,
    'masking.set_retention': 'select masking.set_retention(24)',
    'staging.replay': `select staging.replay('{$quarantined}')`,
    'masking.kek_inbox': `insert into masking.kek_inbox values ('$kek')`,
    'masking.next_kek_inbox': `insert into masking.next_kek_inbox values (decode(repeat('ab', 32), 'hex'))`,
  },
  auditor: { 'audit.verify': 'select * from audit.verify()' },
};

/**
 * Each login can stop the work that it takes part in (docs/threat-model.md). These calls may wait while it
 * holds a transaction open. None of them is maintenance.
 */
export const MAY_STOP: Record<string, string[]> = {
  // A worker may lock the jobs, and submitting a batch adds a job.
  'worker locks graphile_worker': ['submit_batch'],
  // Deleting values and masking wait for each other.
  'worker has called masking.erase_step': ['mask_batch'],
  'worker has called masking.purge_step': ['mask_batch'],
  // It truncates a slot, which masking and submitting read.
  'worker has called staging.recycle_slots': ['mask_batch', 'submit_batch'],
  // They create and drop partitions of user_logins.
  'worker has called masking.retention': ['mask_batch'],
  'worker has called staging.maintain_partitions': ['mask_batch'],
  // It truncates the table of the key-encryption key.
  'worker has called masking.wipe_kek': ['mask_batch'],
  'custodian has called masking.wipe_kek': ['mask_batch'],
  // Masking waits for a change of keys, and a sealed database masks nothing.
  'custodian has called masking.rotate': ['mask_batch'],
  'custodian has called masking.seal': ['mask_batch'],
  'custodian has called masking.next_kek_inbox': ['mask_batch'],
};
