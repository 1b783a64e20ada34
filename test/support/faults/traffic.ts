import { SendMessageBatchCommand, SQSClient } from '@aws-sdk/client-sqs';
import { loginEvents, type LoginEvent } from '../../../local/send/events.ts';
import { malformedBody } from '../../../local/send/malformed.ts';
import { seededRandom, type Random } from '../../../local/send/random.ts';

/** A message that was sent. Without an event, its body is malformed and must be quarantined. */
export interface Sent {
  id: string;
  event?: LoginEvent;
}

const REPEATED_VALUES = 0.2;
const MALFORMED = 0.02;
const SENT_TWICE = 0.05;
const CONCURRENCY = 4;

/** Sends made-up events to the queue, and records each message. */
export class Traffic {
  readonly sent: Sent[] = [];
  readonly #client: SQSClient;
  readonly #queueUrl: string;
  readonly #random: Random;
  readonly #events: Generator<string, never>;
  #toRepeat: { body: string; event?: LoginEvent }[] = [];

  constructor(seed: number, queue: { endpoint: string; region: string; queueUrl: string }) {
    const credentials = { accessKeyId: 'test', secretAccessKey: 'test' };
    this.#client = new SQSClient({ endpoint: queue.endpoint, region: queue.region, credentials });
    this.#queueUrl = queue.queueUrl;
    this.#random = seededRandom(`traffic ${seed}`);
    this.#events = loginEvents({ seed: `events ${seed}`, duplicates: REPEATED_VALUES, malformed: 0 });
  }

  /** Sends to the queue directly, not through the proxy, so that each message that arrives in the queue is recorded. */
  async send(count: number): Promise<void> {
    const bodies = Array.from({ length: count }, () => this.#next());
    const sendBatches = async (): Promise<void> => {
      for (let ten = bodies.splice(0, 10); ten.length > 0; ten = bodies.splice(0, 10)) {
        const Entries = ten.map(({ body }, index) => ({ Id: String(index), MessageBody: body }));
        const command = new SendMessageBatchCommand({ QueueUrl: this.#queueUrl, Entries });
        const { Successful = [] } = await this.#client.send(command);
        for (const { Id, MessageId } of Successful) {
          const { event } = ten[Number(Id)]!;
          this.sent.push(event === undefined ? { id: MessageId! } : { id: MessageId!, event });
        }
      }
    };
    await Promise.all(Array.from({ length: CONCURRENCY }, sendBatches));
  }

  stop(): void {
    this.#client.destroy();
  }

  #next(): { body: string; event?: LoginEvent } {
    const repeated = this.#toRepeat.shift();
    if (repeated !== undefined) return repeated;
    const body = this.#events.next().value;
    const event = JSON.parse(body) as LoginEvent;
    const next = this.#random.chance(MALFORMED)
      ? { body: malformedBody(this.#random, event) }
      : { body, event };
    if (this.#random.chance(SENT_TWICE)) this.#toRepeat.push(next);
    return next;
  }
}
