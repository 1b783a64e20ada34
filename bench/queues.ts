import { buildApp, type BuildAppOptions } from 'fauxqs';
import { loadStores } from '../local/sqs/emulator-stores.ts';
import { freePort } from '../local/ports.ts';

type Store = NonNullable<BuildAppOptions['stores']>['sqsStore'];
type Queue = ReturnType<Store['createQueue']>;
type Message = Queue['messages'][number];

const REGION = 'us-east-1';
const ACCOUNT = '000000000000';

/** How often the emulator checks the messages in flight, in milliseconds. */
const CHECK_EVERY_MS = 100;

/**
 * A queue of the emulator. A benchmark accesses it directly, without requests, which would slow down the contenders.
 */
export interface BenchQueue {
  url: string;
  /** Creates messages from bodies, to be put into the queue later. */
  prepare(bodies: readonly string[]): Message[];
  /** Puts messages into the queue. All become visible at once. */
  put(messages: Message[]): void;
  /** The number of messages that are not deleted: visible or in flight. */
  left(): number;
  /** Whether a long poll is waiting for messages. */
  isPolled(): boolean;
  /** Resolves when the last message is deleted. */
  emptied(): Promise<void>;
  /** Ends all waiting long polls, with empty responses. */
  endPolls(): void;
}

export interface Queues {
  endpoint: string;
  region: string;
  create(name: string): BenchQueue;
  stop(): Promise<void>;
}

/**
 * Starts an emulator (fauxqs, in this process). Each contender has its own queue. So all of them can wait for messages
 * at the same time, and their start is not measured.
 */
export async function startQueues(): Promise<Queues> {
  const stores = await loadStores(undefined);
  const app = buildApp({ logger: false, defaultRegion: REGION, stores });
  const port = await freePort();
  await app.listen({ port, host: '127.0.0.1' });
  const endpoint = `http://127.0.0.1:${port}`;
  return {
    endpoint,
    region: REGION,
    create: (name) => {
      const url = `${endpoint}/${ACCOUNT}/${name}`;
      const queue = stores.sqsStore.createQueue(name, url, `arn:aws:sqs:${REGION}:${ACCOUNT}:${name}`);
      return benchQueue(stores.sqsStore, queue);
    },
    stop: () => app.close(),
  };
}

function benchQueue(store: Store, queue: Queue): BenchQueue {
  makeConstantTime(queue);
  const { createMessage } = store.constructor as unknown as { createMessage(body: string): Message };
  let onEmpty: (() => void) | undefined;
  const left = (): number => queue.messages.length + queue.inflightMessages.size;
  const deleteMessage = queue.deleteMessage.bind(queue);
  queue.deleteMessage = (handle) => {
    const isDeleted = deleteMessage(handle);
    if (left() === 0) onEmpty?.();
    return isDeleted;
  };
  return {
    url: queue.url,
    prepare: (bodies) => bodies.map((body) => createMessage(body)),
    put: (messages) => {
      const now = Date.now();
      for (const message of messages) {
        message.sentTimestamp = now;
        queue.messages.push(message);
      }
      // `enqueue` does this after each message. It is private.
      (queue as unknown as { notifyWaiters(): void }).notifyWaiters();
    },
    left,
    isPolled: () => queue.pollWaiters.length > 0,
    emptied: () =>
      new Promise((resolve) => {
        onEmpty = resolve;
        if (left() === 0) resolve();
      }),
    endPolls: () => queue.cancelWaiters(),
  };
}

/**
 * Makes the cost of a request independent of the number of messages, as in SQS. The emulator removes messages from the
 * front of an array, and checks every message in flight at each request. With thousands of messages, this would take
 * longer than the rest of the request, at the expense of contenders that have many messages in flight.
 */
function makeConstantTime(queue: Queue): void {
  queue.messages = new FifoQueue() as unknown as Message[];
  const processTimers = queue.processTimers.bind(queue);
  let checkedAt = 0;
  queue.processTimers = () => {
    const now = performance.now();
    if (now - checkedAt < CHECK_EVERY_MS) return;
    checkedAt = now;
    processTimers();
  };
}

/** The parts of an array that the emulator uses, in constant time. */
class FifoQueue {
  #items: (Message | undefined)[] = [];
  #first = 0;

  get length(): number {
    return this.#items.length - this.#first;
  }

  push(message: Message): void {
    this.#items.push(message);
  }

  shift(): Message | undefined {
    const message = this.#items[this.#first];
    if (message === undefined) return undefined;
    this.#items[this.#first++] = undefined;
    // Rare enough to be cheap per message, frequent enough to free the memory of removed messages.
    if (this.#first >= 1_024 && this.#first * 2 > this.#items.length) {
      this.#items = this.#items.slice(this.#first);
      this.#first = 0;
    }
    return message;
  }
}
