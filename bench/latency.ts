import { setTimeout as sleep } from 'node:timers/promises';
import { SendMessageBatchCommand, type SQSClient } from '@aws-sdk/client-sqs';
import pg from 'pg';
import { createQueueClient } from '../src/queue/client.ts';
import { loginEvents } from '../local/send/events.ts';
import { withBenchStack } from './bench-stack.ts';
import type { Result } from './benchmark.ts';
import { orFailure, ours, stop, untilReady } from './contenders.ts';
import { startQueues, type Queues } from './queues.ts';

const PER_SECOND = 500;
const SECONDS = 30;
/** How long messages are sent before the measurement. */
const WARM_UP_SECONDS = 5;
const BATCH = 10;
/** How often to check which logins are visible, in milliseconds. This is also the precision of the measurement. */
const CHECK_EVERY_MS = 10;
/** How long to wait for logins after the last message was sent, in milliseconds. */
const GIVE_UP_MS = 30_000;

/**
 * Measures the time from sending a message (the call of SendMessageBatch) until an analyst can see its row, at a steady
 * rate, with loader and worker as in production.
 */
export function latency(): Promise<Result> {
  return withBenchStack(async (stack) => {
    const queues = await startQueues();
    const contender = ours({ stack, queues });
    const analyst = new pg.Client({ connectionString: stack.file.urls.analyst });
    try {
      await analyst.connect();
      await untilReady(contender);
      const client = clientOf(queues, contender.queue.url);
      const logins = new Logins(client, contender.queue.url, analyst);
      try {
        await orFailure(contender, logins.run());
      } finally {
        client.destroy();
      }
      const taken = logins.taken.toSorted((a, b) => a - b);
      return {
        how: `${PER_SECOND} messages/s for ${SECONDS} s; an analyst's connection checks every ${CHECK_EVERY_MS} ms`,
        postgres: stack.version,
        targets: [
          {
            measure: 'j: from sent to visible in user_logins, 99th percentile (s)',
            value: quantile(taken, 0.99) / 1_000,
            atMost: 1,
          },
        ],
        figures: {
          'from sent to visible, median (ms)': quantile(taken, 0.5),
          'from sent to visible, 95th percentile (ms)': quantile(taken, 0.95),
          'from sent to visible, 99th percentile (ms)': quantile(taken, 0.99),
          'from sent to visible, maximum (ms)': quantile(taken, 1),
        },
      };
    } finally {
      await stop([contender]);
      await analyst.end();
      await queues.stop();
    }
  });
}

/** Sends logins, each of a different user, and waits until they are visible. */
class Logins {
  /** From sent to visible, in milliseconds. */
  readonly taken: number[] = [];
  readonly #events = loginEvents({ seed: 'latency', duplicates: 0.2, malformed: 0 });
  readonly #client: SQSClient;
  readonly #url: string;
  readonly #analyst: pg.Client;
  /** When each login that is not visible yet was sent, by user. */
  readonly #sentAt = new Map<string, number>();
  #sent = 0;
  #isSending = true;

  constructor(client: SQSClient, url: string, analyst: pg.Client) {
    this.#client = client;
    this.#url = url;
    this.#analyst = analyst;
  }

  async run(): Promise<void> {
    await Promise.all([this.#send(), this.#check()]);
  }

  async #send(): Promise<void> {
    const startedAt = performance.now();
    const requests: Promise<void>[] = [];
    while (this.#sent < PER_SECOND * (WARM_UP_SECONDS + SECONDS)) {
      // The rate does not depend on responses: a slow pipeline must not slow down the sender.
      const wait = startedAt + (this.#sent * 1_000) / PER_SECOND - performance.now();
      if (wait > 0) await sleep(wait);
      requests.push(this.#sendBatch());
    }
    await Promise.all(requests);
    this.#isSending = false;
  }

  async #sendBatch(): Promise<void> {
    const users = Array.from({ length: BATCH }, () => `user-${this.#sent++}`);
    const Entries = users.map((user_id, index) => {
      const event = { ...(JSON.parse(this.#events.next().value) as object), user_id };
      return { Id: String(index), MessageBody: JSON.stringify(event) };
    });
    const now = performance.now();
    for (const user of users) this.#sentAt.set(user, now);
    await this.#client.send(new SendMessageBatchCommand({ QueueUrl: this.#url, Entries }));
  }

  async #check(): Promise<void> {
    let sentAllAt = Infinity;
    while (this.#isSending || this.#sentAt.size > 0) {
      const checkAt = performance.now();
      const { rows } = await this.#analyst.query<{ user_id: string }>({
        name: 'look',
        text: 'select user_id from public.user_logins where user_id = any ($1)',
        values: [[...this.#sentAt.keys()]],
      });
      const now = performance.now();
      for (const { user_id } of rows) this.#onVisible(user_id, now);
      if (!this.#isSending) sentAllAt = Math.min(sentAllAt, now);
      if (now - sentAllAt > GIVE_UP_MS)
        throw new Error(`${this.#sentAt.size} messages did not become visible in time`);
      await sleep(Math.max(0, checkAt + CHECK_EVERY_MS - now));
    }
  }

  #onVisible(user: string, now: number): void {
    const isCounted = Number(user.slice('user-'.length)) >= PER_SECOND * WARM_UP_SECONDS;
    if (isCounted) this.taken.push(now - this.#sentAt.get(user)!);
    this.#sentAt.delete(user);
  }
}

function clientOf({ endpoint, region }: Queues, url: string): SQSClient {
  const credentials = { accessKeyId: 'bench', secretAccessKey: 'bench' };
  return createQueueClient({ url, endpoint, region, credentials }, { maxSockets: 8 });
}

/** The quantile of sorted values: the value that a share of them does not exceed. */
function quantile(sorted: readonly number[], share: number): number {
  return sorted[Math.ceil(sorted.length * share) - 1]!;
}
