import type { Message } from '@aws-sdk/client-sqs';
import { createCipheriv, createHmac, randomBytes } from 'node:crypto';
import type { LoginEvent } from '../../local/send/events.ts';

/** The keys are in the process, as they are wherever masking is done in the process. */
const KEYS = { ip: keys(), device: keys() };

/** The columns of a row of `tables.sql`, in the order of `rowOf`. */
export const COLUMNS =
  'user_id, create_date, message_id, device_type, masked_ip, masked_device_id, locale, app_version';

/** A login as a row, its address and its device masked. */
export function rowOf({ MessageId, Attributes, Body }: Message): (string | null | undefined)[] {
  const event = JSON.parse(Body!) as LoginEvent;
  return [
    event.user_id,
    new Date(Number(Attributes!.SentTimestamp)).toISOString(),
    MessageId,
    event.device_type,
    masked(KEYS.ip, event.ip),
    masked(KEYS.device, event.device_id),
    event.locale,
    event.app_version,
  ];
}

/**
 * AES-256 that makes the same of the same: in counter mode, with the first half of the value's HMAC-SHA256 as the
 * initialization vector and as the proof that nobody changed it (SIV; Node has none of its own).
 */
function masked(key: { cipher: Buffer; mac: Buffer }, value: string): string {
  const iv = createHmac('sha256', key.mac).update(value).digest().subarray(0, 16);
  const cipher = createCipheriv('aes-256-ctr', key.cipher, iv);
  return Buffer.concat([iv, cipher.update(value, 'utf8'), cipher.final()]).toString('base64');
}

function keys(): { cipher: Buffer; mac: Buffer } {
  return { cipher: randomBytes(32), mac: randomBytes(32) };
}
