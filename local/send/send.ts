import { SendMessageBatchCommand, type SQSClient } from '@aws-sdk/client-sqs';
import { FatalError } from '../../src/errors.ts';
import { queueFault } from '../../src/queue/faults.ts';
import { backoffMs } from '../../src/retry.ts';
import { pause } from '../../src/wait.ts';
import { inBatches } from './batches.ts';

/** Requests under way at once: enough to keep SQS busy, few enough for one small machine. */
const LANES = 8;

/** Attempts to send one message, and the waits between them. */
const ATTEMPTS = 8;
const BACKOFF = { firstMs: 100, ceilingMs: 10_000 };

export interface SendOptions {
  client: SQSClient;
  queueUrl: string;
  bodies: Iterable<string> | AsyncIterable<string>;
  /** Messages a second; without it as fast as the queue takes them. */
  rate?: number | undefined;
  /** Stops sending; what is under way is finished. */
  signal?: AbortSignal | undefined;
  /** Called after each batch with the messages sent so far. */
  onProgress?: (sent: number) => void;
}

export interface SendSummary {
  sent: number;
  /** Refused by SQS for what they are: too long, or with characters that it does not take. */
  rejected: number;
  seconds: number;
}

/**
 * Sends bodies to a queue in batches of ten, several at once, and again what SQS did not take.
 *
 * @throws what the SDK throws where the queue cannot be used or does not recover; {FatalError} where it keeps refusing
 */
export async function sendEvents(options: SendOptions): Promise<SendSummary> {
  const started = performance.now();
  const summary: SendSummary = { sent: 0, rejected: 0, seconds: 0 };
  const pace = paceOf(options.rate, options.signal);
  // A slow rate is kept by small batches, not by ten messages at once and a long silence.
  const batches = inBatches(
    options.bodies,
    options.rate === undefined ? undefined : Math.ceil(options.rate / 10),
  );
  const failure = new AbortController();
  const lane = async (): Promise<void> => {
    while (!failure.signal.aborted && options.signal?.aborted !== true) {
      const { value: batch, done } = await batches.next();
      if (done || !(await pace(batch.length))) return;
      const rejected = await sendBatch(options.client, options.queueUrl, batch);
      summary.rejected += rejected;
      summary.sent += batch.length - rejected;
      options.onProgress?.(summary.sent);
    }
  };
  const guarded = () =>
    lane().catch((error: unknown) => {
      failure.abort();
      throw error;
    });
  await Promise.all(Array.from({ length: LANES }, guarded));
  summary.seconds = Math.round(performance.now() - started) / 1_000;
  return summary;
}

/** Waits until the next messages may go. */
function paceOf(rate: number | undefined, signal?: AbortSignal): (count: number) => Promise<boolean> {
  let next = performance.now();
  return async (count) => {
    if (rate !== undefined) {
      const wait = next - performance.now();
      // A queue that was slow for a while is not made up for in a burst.
      next = Math.max(next, performance.now() - 1_000) + (count * 1_000) / rate;
      if (wait > 0) await pause(wait, signal);
    }
    return signal?.aborted !== true;
  };
}

/** @returns how many messages SQS refused for what they are */
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
        // One of them is at fault, and SQS does not say which.
        for (const body of left) rejected += await sendBatch(client, queueUrl, [body]);
        return rejected;
      }
      if (attempt === ATTEMPTS) throw error;
    }
    if (left.length === 0) break;
    if (attempt === ATTEMPTS)
      throw new FatalError('the queue takes some messages and keeps refusing others: try later');
    await pause(backoffMs(attempt, BACKOFF));
  }
  return rejected;
}

/** Whether SQS refuses a whole request for a message in it. */
function isRefusal(error: unknown): boolean {
  return (
    error instanceof Error &&
    ['InvalidMessageContents', 'BatchRequestTooLong', 'InvalidParameterValue'].includes(error.name)
  );
}
