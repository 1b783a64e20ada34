import { once } from 'node:events';
import {
  Agent,
  createServer,
  request,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from 'node:http';
import type { AddressInfo } from 'node:net';
import { buffer } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { TRUE_VISIBILITY_SECONDS } from './protocol.ts';

export type Operation = 'ReceiveMessage' | 'DeleteMessageBatch';

export const QUEUE_FAULTS = {
  ReceiveMessage: [
    'sqs 429', 'sqs 500', 'sqs 503', 'sqs time-out', 'sqs reset after send', 'sqs empty answer while messages wait',
    'sqs duplicated delivery', 'sqs reordered delivery', 'sqs visibility expires in mid-batch',
  ],
  DeleteMessageBatch: [
    'sqs 429', 'sqs 500', 'sqs 503', 'sqs reset after send', 'sqs delete fails in part, retryable',
    'sqs delete fails in part, sender fault', 'sqs stale receipt',
  ],
} as const; // prettier-ignore

/** A fault that is to strike the request of its operation that comes after `skip` others. */
export interface PlannedFault {
  operation: Operation;
  kind: string;
  skip: number;
}

interface Received {
  MessageId: string;
  ReceiptHandle: string;
  Attributes?: { ApproximateReceiveCount?: string };
}
interface Entry {
  Id: string;
  ReceiptHandle: string;
}
interface Body {
  Messages?: Received[];
  Entries?: Entry[];
  Successful?: { Id: string }[];
  Failed?: object[];
  VisibilityTimeout?: number;
  MaxNumberOfMessages?: number;
}

const STATUS: Record<string, [number, string]> = {
  'sqs 429': [429, 'ThrottlingException'],
  'sqs 500': [500, 'InternalFailure'],
  'sqs 503': [503, 'ServiceUnavailable'],
};

/** How long a delivery that is overtaken by others waits, in milliseconds. */
const OVERTAKEN_MS = 400;

/** A way to SQS that can be made bad: the JSON protocol over HTTP, each request looked at. */
export class QueueProxy {
  readonly #target: URL;
  readonly #server: Server;
  readonly #agent = new Agent({ keepAlive: true });
  readonly #onHit: (kind: string) => void;
  #planned: PlannedFault[] = [];
  #delivered: Received[] = [];
  /** Given to every message instead of what the loader asks for, in seconds. */
  visibilitySeconds = TRUE_VISIBILITY_SECONDS;
  /** While true, what is planned waits. */
  isHeldBack = false;
  /** Requests that will never be answered, until their client gives up. */
  hanging = 0;

  private constructor(endpoint: string, onHit: (kind: string) => void) {
    this.#target = new URL(endpoint);
    this.#onHit = onHit;
    this.#server = createServer((question, answer) => {
      void this.#handle(question, answer).catch(() => answer.destroy());
    });
    this.#server.keepAliveTimeout = 60_000;
  }

  static async start(endpoint: string, onHit: (kind: string) => void): Promise<QueueProxy> {
    const proxy = new QueueProxy(endpoint, onHit);
    proxy.#server.listen(0, '127.0.0.1');
    await once(proxy.#server, 'listening');
    return proxy;
  }

  get endpoint(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Faults that are planned and have not struck. */
  get pending(): readonly PlannedFault[] {
    return this.#planned;
  }

  plan(faults: readonly PlannedFault[]): void {
    this.#planned.push(...faults.map((fault) => ({ ...fault })));
  }

  /** Lets everything pass from now on. */
  calm(): void {
    this.#planned = [];
  }

  async stop(): Promise<void> {
    this.#server.close();
    this.#server.closeAllConnections();
    this.#agent.destroy();
  }

  async #handle(question: IncomingMessage, answer: ServerResponse): Promise<void> {
    const operation = String(question.headers['x-amz-target']).replace('AmazonSQS.', '');
    const body = JSON.parse((await buffer(question)).toString() || '{}') as Body;
    const kind = this.#take(operation);
    const status = STATUS[kind ?? ''];
    if (status !== undefined) {
      this.#onHit(kind!);
      return reply(answer, status[0], { __type: status[1], message: 'a fault' });
    }
    if (operation === 'ReceiveMessage') return this.#receive(question, answer, body, kind);
    if (operation === 'DeleteMessageBatch') return this.#delete(question, answer, body, kind);
    const passed = await this.#pass(question, body);
    reply(answer, passed.status, passed.body);
  }

  async #receive(
    question: IncomingMessage,
    answer: ServerResponse,
    body: Body,
    kind?: string,
  ): Promise<void> {
    if (kind === 'sqs empty answer while messages wait') {
      this.#onHit(kind);
      return reply(answer, 200, {});
    }
    body.VisibilityTimeout = kind === 'sqs visibility expires in mid-batch' ? 0 : this.visibilitySeconds;
    if (kind === 'sqs duplicated delivery') body.MaxNumberOfMessages = 5;
    const passed = await this.#pass(question, body);
    const messages = passed.body.Messages ?? [];
    // A fault of a delivery strikes where something is delivered.
    if (kind !== undefined && messages.length === 0)
      this.plan([{ operation: 'ReceiveMessage', kind, skip: 0 }]);
    else if (kind !== undefined) this.#onHit(kind);
    for (const message of messages) {
      if (Number(message.Attributes?.ApproximateReceiveCount) > 1) this.#onHit('sqs redelivery');
    }
    if (kind === 'sqs time-out' && messages.length > 0) {
      this.hanging += 1;
      answer.once('close', () => (this.hanging -= 1));
      return; // and never answers: the client gives up
    }
    if (kind === 'sqs reset after send' && messages.length > 0) return void answer.socket?.resetAndDestroy();
    if (kind === 'sqs reordered delivery') {
      messages.reverse();
      await sleep(OVERTAKEN_MS);
    }
    if (kind === 'sqs duplicated delivery' && messages.length > 0) {
      // The same one twice in a batch, and some that came before and may be gone by now.
      passed.body.Messages = [...messages, messages[0]!, ...this.#delivered.slice(0, 3)];
    }
    this.#delivered = [...messages.slice(0, 2), ...this.#delivered].slice(0, 20);
    reply(answer, passed.status, passed.body);
  }

  async #delete(question: IncomingMessage, answer: ServerResponse, body: Body, kind?: string): Promise<void> {
    if (kind !== undefined) this.#onHit(kind);
    const entries = body.Entries ?? [];
    const failing = kind === undefined || kind === 'sqs reset after send' ? 0 : Math.ceil(entries.length / 2);
    const [kept, passedOn] = [entries.slice(0, failing), entries.slice(failing)];
    const passed =
      passedOn.length === 0
        ? { status: 200, body: {} as Body }
        : await this.#pass(question, { ...body, Entries: passedOn });
    if (kind === 'sqs reset after send') return void answer.socket?.resetAndDestroy();
    const { Successful = [], Failed = [] } = passed.body;
    if (kind === 'sqs stale receipt') {
      // SQS says yes to a handle that a later delivery has made stale, and keeps the message.
      Successful.push(...kept.map(({ Id }) => ({ Id })));
    } else {
      const SenderFault = kind === 'sqs delete fails in part, sender fault';
      const Code = SenderFault ? 'ReceiptHandleIsInvalid' : 'InternalError';
      Failed.push(...kept.map(({ Id }) => ({ Id, SenderFault, Code, Message: 'a fault' })));
    }
    reply(answer, passed.status, kept.length === 0 ? passed.body : { Successful, Failed });
  }

  #take(operation: string): string | undefined {
    if (this.isHeldBack) return undefined;
    const index = this.#planned.findIndex((fault) => fault.operation === operation);
    const fault = this.#planned[index];
    if (fault === undefined) return undefined;
    fault.skip -= 1;
    if (fault.skip >= 0) return undefined;
    this.#planned.splice(index, 1);
    return fault.kind;
  }

  async #pass(question: IncomingMessage, body: Body): Promise<{ status: number; body: Body }> {
    const bytes = Buffer.from(JSON.stringify(body));
    const { host: _, 'content-length': __, ...headers } = question.headers;
    const onward = request({
      hostname: this.#target.hostname,
      port: this.#target.port,
      path: question.url,
      method: question.method,
      agent: this.#agent,
      headers: { ...headers, 'content-length': bytes.length },
    });
    onward.end(bytes);
    const [answer] = (await once(onward, 'response')) as [IncomingMessage];
    const text = (await buffer(answer)).toString();
    return { status: answer.statusCode ?? 500, body: JSON.parse(text || '{}') as Body };
  }
}

function reply(answer: ServerResponse, status: number, body: object): void {
  answer.writeHead(status, { 'content-type': 'application/x-amz-json-1.0' });
  answer.end(JSON.stringify(body));
}
