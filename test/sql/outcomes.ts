import type { TestDatabase } from '../support/database.ts';
import { event, maskAll, message, type Body, type Message } from '../support/staging.ts';

/** Matches every permitted reason. No reason contains any text of a body. */
const REASON = new RegExp(
  `^(?:${[
    'body: (?:not UTF-8 text, or holds a NUL byte|not JSON|not a JSON object|holds a number out of range|nested too deeply)',
    String.raw`body: holds an escape that no text can hold \(NUL or half a surrogate pair\)`,
    'body: (?:gzip, or base64 of gzip|base64|pointer of the SQS extended client|S3 test event|S3 event notification)',
    'body: (?:SNS subscription confirmation|(?:SNS|EventBridge) envelope without a login event)',
    'user_id: (?:missing|null|not a string|empty|longer than 128 characters)',
    '(?:ip|device_id): (?:not a string|longer than 256 bytes)',
    '(?:device_type|locale): (?:not a string|longer than 32 characters)',
    'app_version: (?:not a string|longer than 64 characters)',
  ].join('|')})$`,
);

export type Result = 'loaded' | 'quarantined';

/**
 * Masks bodies in one batch, with a valid message after every tenth. Returns the result of each body.
 *
 * @throws as `resultsOf` does, and if a valid message is not loaded
 */
export async function maskBodies(db: TestDatabase, bodies: readonly Body[]): Promise<Result[]> {
  const tested = bodies.map((body) => message(body));
  const valid = bodies.filter((_, index) => index % 10 === 0).map(() => message(event()));
  const all = tested.flatMap((each, index) => (index % 10 === 0 ? [each, valid[index / 10]!] : [each]));
  const { receipts } = await maskAll(db, all);
  if (receipts.length !== all.length) throw new Error('a message has no receipt');
  const results = await resultsOf(db, all);
  if (valid.some(({ id }) => results.get(id) !== 'loaded')) throw new Error('a valid message is not loaded');
  return tested.map(({ id }) => results.get(id)!);
}

/** @throws if a message is in neither table or in both, or if its reason is not a permitted one */
export async function resultsOf(
  db: Pick<TestDatabase, 'superuser'>,
  messages: readonly Pick<Message, 'id'>[],
): Promise<Map<string, Result>> {
  const { rows } = await db.superuser.query<{ id: string; reason: string | null }>(
    `select message_id as id, null as reason from public.user_logins where message_id = any ($1)
     union all
     select message_id, reason from staging.quarantine where message_id = any ($1)`,
    [messages.map(({ id }) => id)],
  );
  const results = new Map<string, Result>();
  for (const { id, reason } of rows) {
    if (results.has(id)) throw new Error('a message is stored twice');
    if (reason !== null && !REASON.test(reason)) throw new Error('a reason is not a permitted one');
    results.set(id, reason === null ? 'loaded' : 'quarantined');
  }
  if (results.size !== messages.length) throw new Error('a message is not stored');
  return results;
}
