import { createHash } from 'node:crypto';

const UUID = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

/**
 * The UUID for an SQS message id, always the same one: it is part of the table's key.
 *
 * AWS's message ids are UUIDs and are only converted to lower case. Message ids of some emulators are not UUIDs: they
 * become a UUIDv8 of their SHA-256.
 *
 * @param messageId `MessageId` as SQS sent it
 */
export function toUuid(messageId: string): string {
  if (UUID.test(messageId)) return messageId.toLowerCase();
  const bytes = createHash('sha256').update(messageId, 'utf8').digest().subarray(0, 16);
  bytes[6] = (bytes[6]! & 0x0f) | 0x80;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const hex = bytes.toString('hex');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}
