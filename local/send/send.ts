import { SendMessageBatchCommand, type SQSClient } from '@aws-sdk/client-sqs';
import { FatalError } from '../../src/errors.ts';
import { inLanes } from '../../src/lanes.ts';
import { queueFault } from '../../src/queue/faults.ts';
import { CONCURRENCY } from '../../src/queue/tens.ts';
import { backoffMs } from '../../src/retry.ts';
import { pause } from '../../src/wait.ts';
import { inBatches } from './batches.ts';

/** Attempts to send one message, and the waits between them. */
const ATTEMPTS = 8;
const BACKOFF = { firstMs: 100, ceilingMs: 10_000 };

export interface SendOptions {
  client: SQSClient;
  queueUrl: string;
  bodies: Iterable<string> | AsyncIterable<string>;
  /** Messages a second; by default as many as the queue accepts. */
  rate?: number | undefined;
  /** Stops sending. Requests under way are finished. */
  signal?: AbortSignal | undefined;
  /** Called after each batch with the number of messages sent so far. */
  onProgress?: (sent: number) => void;
}

export interface SendSummary {
  sent: number;
  /** Refused by SQS: too long, or with characters that it does not accept. */
  rejected: number;
  seconds: number;
}

/**
 * Sends bodies to a queue in batches of ten, several at the same time. What SQS does not accept is sent again.
 *
 * @throws {FatalError} if SQS accepts some messages and keeps refusing others
 * @throws any error of the SDK if the queue cannot be used or does not recover
 */
export async function sendEvents(options: SendOptions): Promise<SendSummary> {
  const started = performance.now();
  const summary: SendSummary = { sent: 0, rejected: 0, seconds: 0 };
  const { client, queueUrl, bodies, rate, signal: stop, onProgress } = options;
  const pace = paceOf(rate, stop);
  // At a slow rate, batches are small: ten messages and then a long pause would be uneven.
  const batches = inBatches(bodies, rate === undefined ? undefined : Math.ceil(rate / 10));
  await inLanes({ lanes: CONCURRENCY, items: batches, stop }, async (batch) => {
    if (!(await pace(batch.length))) return;
    const rejected = await sendBatch(client, queueUrl, batch);
    summary.rejected += rejected;
    summary.sent += batch.length - rejected;
    onProgress?.(summary.sent);
  });
  summary.seconds = Math.round(performance.now() - started) / 1_000;
  return summary;
}

/** A function that waits until the next messages may be sent. It returns false after an abort. */
function paceOf(rate: number | undefined, signal?: AbortSignal): (count: number) => Promise<boolean> {
  let next = performance.now();
  return async (count) => {
    if (rate !== undefined) {
      const wait = next - performance.now();
      // After the queue was slow, do not catch up in a burst.
      next = Math.max(next, performance.now() - 1_000) + (count * 1_000) / rate;
      if (wait > 0) await pause(wait, signal);
    }
    return signal?.aborted !== true;
  };
}

/** @returns how many messages SQS refused because of their content */
async function sendBatch(client: SQSClient, queueUrl: string, batch: string[]): Promise<number> {
  let left = batch;
  let rejected = 0;
  for (let attempt = 1; left.length > 0; attempt += 1) {
    try {
      const answer = await client.send(
        new SendMessageBatchCommand({
          QueueUrl: queueUrl,
          Entries: left.map((body, position) => ({ Id: String(position), MessageBody: body })),
        }),
      );
      const failed = answer.Failed ?? [];
      rejected += failed.filter((entry) => entry.SenderFault).length;
      left = failed.filter((entry) => !entry.SenderFault).flatMap((entry) => left[Number(entry.Id)] ?? []);
    } catch (error) {
      if (queueFault(error)?.fatal) throw error;
      if (isRefusal(error)) {
        if (left.length === 1) return rejected + 1;
        // SQS does not say which message it refuses.
        for (const body of left) rejected += await sendBatch(client, queueUrl, [body]);
        return rejected;
      }
      if (attempt === ATTEMPTS) throw error;
    }
    if (left.length === 0) break;
    if (attempt === ATTEMPTS)
      throw new FatalError('the queue accepts some messages and keeps refusing others: try again later');
    await pause(backoffMs(attempt, BACKOFF));
  }
  return rejected;
}

/** Whether SQS refuses a whole request because of a message in it. */
function isRefusal(error: unknown): boolean {
  return (
    error instanceof Error &&
    ['InvalidMessageContents', 'BatchRequestTooLong', 'InvalidParameterValue'].includes(error.name)
  );
}
