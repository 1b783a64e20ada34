import { buildApp, type BuildAppOptions } from 'fauxqs';
import { loadStores } from '../local/sqs/emulator-stores.ts';
import { freePort } from '../local/ports.ts';

type Store = NonNullable<BuildAppOptions['stores']>['sqsStore'];
type Queue = ReturnType<Store['createQueue']>;
type Message = Queue['messages'][number];

const REGION = 'us-east-1';
const ACCOUNT = '000000000000';

/** How often the emulator looks through the messages in flight, in milliseconds. */
const LOOK_EVERY_MS = 100;

/** A queue of the emulator's, seen from inside: what a benchmark does to it takes no time of whom it measures. */
export interface BenchQueue {
  url: string;
  /** Makes messages of bodies, to be put later. */
  prepare(bodies: readonly string[]): Message[];
  /** Makes messages visible, all at once. */
  put(messages: Message[]): void;
  /** Messages that are not deleted: visible and in flight. */
  left(): number;
  /** Whether somebody waits for messages. */
  isAwaited(): boolean;
  /** Settles with the deletion of the last message. */
  emptied(): Promise<void>;
  /** Answers whoever waits for messages: there are none. */
  dismiss(): void;
}

export interface Queues {
  endpoint: string;
  region: string;
  create(name: string): BenchQueue;
  stop(): Promise<void>;
}

/**
 * Starts an emulator (fauxqs, in this process) for benchmarks: a queue for each contender, so that all of them can
 * wait for messages at the same time and none pays for its start.
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
  withoutCostOfItsLength(queue);
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
      // What `enqueue` does after each message; it is private.
      (queue as unknown as { notifyWaiters(): void }).notifyWaiters();
    },
    left,
    isAwaited: () => queue.pollWaiters.length > 0,
    emptied: () =>
      new Promise((resolve) => {
        onEmpty = resolve;
        if (left() === 0) resolve();
      }),
    dismiss: () => queue.cancelWaiters(),
  };
}

/**
 * The emulator takes messages off the front of an array, and looks at every message in flight whenever it is asked
 * for some: thousands of messages waiting or in flight would cost it more time than the rest of the request. SQS
 * knows no such cost. Whoever has messages in flight for longer, as whoever works in batches, would pay it.
 */
function withoutCostOfItsLength(queue: Queue): void {
  queue.messages = new Line() as unknown as Message[];
  const processTimers = queue.processTimers.bind(queue);
  let lookedAt = 0;
  queue.processTimers = () => {
    const now = performance.now();
    if (now - lookedAt < LOOK_EVERY_MS) return;
    lookedAt = now;
    processTimers();
  };
}

/** What the emulator uses of an array, at the same cost however long it is. */
class Line {
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
    // Seldom enough that it costs nothing a message, often enough that what is gone takes no memory.
    if (this.#first >= 1_024 && this.#first * 2 > this.#items.length) {
      this.#items = this.#items.slice(this.#first);
      this.#first = 0;
    }
    return message;
  }
}
