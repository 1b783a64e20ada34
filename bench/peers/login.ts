import type { Message } from '@aws-sdk/client-sqs';
import { createCipheriv, createHmac, randomBytes } from 'node:crypto';
import type { LoginEvent } from '../../local/send/events.ts';

/** The process holds the keys, as in every solution that masks outside of the database. */
const KEYS = { ip: createKeys(), device: createKeys() };

/** The columns of a row of `tables.sql`, in the order of `rowOf`. */
export const COLUMNS =
  'user_id, create_date, message_id, device_type, masked_ip, masked_device_id, locale, app_version';

/** A login as a row, with masked address and device. */
export function rowOf({ MessageId, Attributes, Body }: Message): (string | null | undefined)[] {
  const event = JSON.parse(Body!) as LoginEvent;
  return [
    event.user_id,
    new Date(Number(Attributes!.SentTimestamp)).toISOString(),
    MessageId,
    event.device_type,
    encrypt(KEYS.ip, event.ip),
    encrypt(KEYS.device, event.device_id),
    event.locale,
    event.app_version,
  ];
}

/**
 * Deterministic authenticated encryption: AES-256 in counter mode, with the first half of the value's HMAC-SHA256 as
 * initialization vector and authentication tag (like SIV, which Node does not have).
 */
function encrypt(key: { cipher: Buffer; mac: Buffer }, value: string): string {
  const iv = createHmac('sha256', key.mac).update(value).digest().subarray(0, 16);
  const cipher = createCipheriv('aes-256-ctr', key.cipher, iv);
  return Buffer.concat([iv, cipher.update(value, 'utf8'), cipher.final()]).toString('base64');
}

function createKeys(): { cipher: Buffer; mac: Buffer } {
  return { cipher: randomBytes(32), mac: randomBytes(32) };
}
