import type { TestDatabase } from '../support/database.ts';
import { event, maskAll, message, type Body, type Message } from '../support/staging.ts';

/** Every reason that there may be: nothing in it comes from a body. */
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

export type End = 'loaded' | 'quarantined';

/**
 * Masks bodies in one batch with a good one after every tenth, and says where each ended.
 *
 * @throws where one ended nowhere or twice, a good one did not load, or a reason is none that there may be
 */
export async function maskOdd(db: TestDatabase, bodies: readonly Body[]): Promise<End[]> {
  const odd = bodies.map((body) => message(body));
  const good = bodies.filter((_, index) => index % 10 === 0).map(() => message(event()));
  const all = odd.flatMap((each, index) => (index % 10 === 0 ? [each, good[index / 10]!] : [each]));
  const { receipts } = await maskAll(db, all);
  if (receipts.length !== all.length) throw new Error('a message has no receipt');
  const ends = await endsOf(db, all);
  if (good.some(({ id }) => ends.get(id) !== 'loaded')) throw new Error('a good message did not load');
  return odd.map(({ id }) => ends.get(id)!);
}

/** @throws where a message is nowhere or in two places, or a reason is none that there may be */
export async function endsOf(
  db: Pick<TestDatabase, 'superuser'>,
  messages: readonly Pick<Message, 'id'>[],
): Promise<Map<string, End>> {
  const { rows } = await db.superuser.query<{ id: string; reason: string | null }>(
    `select message_id as id, null as reason from public.user_logins where message_id = any ($1)
     union all
     select message_id, reason from staging.quarantine where message_id = any ($1)`,
    [messages.map(({ id }) => id)],
  );
  const ends = new Map<string, End>();
  for (const { id, reason } of rows) {
    if (ends.has(id)) throw new Error('a message ended twice');
    if (reason !== null && !REASON.test(reason)) throw new Error('a reason is none that there may be');
    ends.set(id, reason === null ? 'loaded' : 'quarantined');
  }
  if (ends.size !== messages.length) throw new Error('a message ended nowhere');
  return ends;
}
