import type { ReceivedMessage } from '../../src/queue/receive.ts';

/** Messages as they are received, with bodies of this many bytes. */
export const messages = (count: number, bytes = 10): ReceivedMessage[] =>
  Array.from({ length: count }, (_, n) => ({
    messageId: `00000000-0000-4000-8000-${String(n).padStart(12, '0')}`,
    receiptHandle: `handle ${n}`,
    sentAt: 0,
    receiveCount: 1,
    body: 'x'.repeat(bytes),
    bytes,
  }));
