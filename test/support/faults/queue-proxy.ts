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
    'sqs 429', 'sqs 500', 'sqs 503', 'sqs timeout', 'sqs connection reset before the response',
    'sqs empty response although messages are visible', 'sqs duplicated delivery', 'sqs reordered delivery',
    'sqs visibility timeout expires during the batch',
  ],
  DeleteMessageBatch: [
    'sqs 429', 'sqs 500', 'sqs 503', 'sqs connection reset before the response',
    'sqs partial failure of a delete, retryable', 'sqs partial failure of a delete, sender fault',
    'sqs stale receipt handle',
  ],
} as const; // prettier-ignore

/** A fault that affects one request of its operation, after `skip` others. */
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

/** How long a delivery is delayed so that others overtake it, in milliseconds. */
const REORDER_DELAY_MS = 400;

/** An HTTP proxy before the emulator that understands SQS's JSON protocol and can make requests fail. */
export class QueueProxy {
  readonly #target: URL;
  readonly #server: Server;
  readonly #agent = new Agent({ keepAlive: true });
  readonly #onHit: (kind: string) => void;
  #planned: PlannedFault[] = [];
  #delivered: Received[] = [];
  /** The visibility timeout of every message, in seconds, instead of what the loader requests. */
  visibilitySeconds = TRUE_VISIBILITY_SECONDS;
  /** While true, planned faults wait. */
  isPaused = false;
  /** Number of requests that get no response and whose client has not given up yet. */
  hanging = 0;

  private constructor(endpoint: string, onHit: (kind: string) => void) {
    this.#target = new URL(endpoint);
    this.#onHit = onHit;
    this.#server = createServer((incoming, response) => {
      void this.#handle(incoming, response).catch(() => response.destroy());
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

  /** Planned faults that have not taken effect yet. */
  get pending(): readonly PlannedFault[] {
    return this.#planned;
  }

  plan(faults: readonly PlannedFault[]): void {
    this.#planned.push(...faults.map((fault) => ({ ...fault })));
  }

  /** Cancels all planned faults. */
  cancelFaults(): void {
    this.#planned = [];
  }

  async stop(): Promise<void> {
    this.#server.close();
    this.#server.closeAllConnections();
    this.#agent.destroy();
  }

  async #handle(incoming: IncomingMessage, response: ServerResponse): Promise<void> {
    const operation = String(incoming.headers['x-amz-target']).replace('AmazonSQS.', '');
    const body = JSON.parse((await buffer(incoming)).toString() || '{}') as Body;
    const kind = this.#take(operation);
    const status = STATUS[kind ?? ''];
    if (status !== undefined) {
      this.#onHit(kind!);
      return reply(response, status[0], { __type: status[1], message: 'a fault' });
    }
    if (operation === 'ReceiveMessage') return this.#receive(incoming, response, body, kind);
    if (operation === 'DeleteMessageBatch') return this.#delete(incoming, response, body, kind);
    const passed = await this.#pass(incoming, body);
    reply(response, passed.status, passed.body);
  }

  async #receive(
    incoming: IncomingMessage,
    response: ServerResponse,
    body: Body,
    kind?: string,
  ): Promise<void> {
    if (kind === 'sqs empty response although messages are visible') {
      this.#onHit(kind);
      return reply(response, 200, {});
    }
    body.VisibilityTimeout =
      kind === 'sqs visibility timeout expires during the batch' ? 0 : this.visibilitySeconds;
    if (kind === 'sqs duplicated delivery') body.MaxNumberOfMessages = 5;
    const passed = await this.#pass(incoming, body);
    const messages = passed.body.Messages ?? [];
    // A fault of a delivery needs a delivery: it waits for the next request.
    if (kind !== undefined && messages.length === 0)
      this.plan([{ operation: 'ReceiveMessage', kind, skip: 0 }]);
    else if (kind !== undefined) this.#onHit(kind);
    for (const message of messages) {
      if (Number(message.Attributes?.ApproximateReceiveCount) > 1) this.#onHit('sqs redelivery');
    }
    if (kind === 'sqs timeout' && messages.length > 0) {
      this.hanging += 1;
      response.once('close', () => (this.hanging -= 1));
      return; // without a response: the client gives up
    }
    if (kind === 'sqs connection reset before the response' && messages.length > 0)
      return void response.socket?.resetAndDestroy();
    if (kind === 'sqs reordered delivery') {
      messages.reverse();
      await sleep(REORDER_DELAY_MS);
    }
    if (kind === 'sqs duplicated delivery' && messages.length > 0) {
      // One message twice in the same batch, and earlier ones that may have been deleted since.
      passed.body.Messages = [...messages, messages[0]!, ...this.#delivered.slice(0, 3)];
    }
    this.#delivered = [...messages.slice(0, 2), ...this.#delivered].slice(0, 20);
    reply(response, passed.status, passed.body);
  }

  async #delete(
    incoming: IncomingMessage,
    response: ServerResponse,
    body: Body,
    kind?: string,
  ): Promise<void> {
    if (kind !== undefined) this.#onHit(kind);
    const entries = body.Entries ?? [];
    const failing =
      kind === undefined || kind === 'sqs connection reset before the response'
        ? 0
        : Math.ceil(entries.length / 2);
    const [kept, passedOn] = [entries.slice(0, failing), entries.slice(failing)];
    const passed =
      passedOn.length === 0
        ? { status: 200, body: {} as Body }
        : await this.#pass(incoming, { ...body, Entries: passedOn });
    if (kind === 'sqs connection reset before the response') return void response.socket?.resetAndDestroy();
    const { Successful = [], Failed = [] } = passed.body;
    if (kind === 'sqs stale receipt handle') {
      // SQS reports success for a receipt handle that a later delivery has made stale, and keeps the message.
      Successful.push(...kept.map(({ Id }) => ({ Id })));
    } else {
      const SenderFault = kind === 'sqs partial failure of a delete, sender fault';
      const Code = SenderFault ? 'ReceiptHandleIsInvalid' : 'InternalError';
      Failed.push(...kept.map(({ Id }) => ({ Id, SenderFault, Code, Message: 'a fault' })));
    }
    reply(response, passed.status, kept.length === 0 ? passed.body : { Successful, Failed });
  }

  #take(operation: string): string | undefined {
    if (this.isPaused) return undefined;
    const index = this.#planned.findIndex((fault) => fault.operation === operation);
    const fault = this.#planned[index];
    if (fault === undefined) return undefined;
    fault.skip -= 1;
    if (fault.skip >= 0) return undefined;
    this.#planned.splice(index, 1);
    return fault.kind;
  }

  async #pass(incoming: IncomingMessage, body: Body): Promise<{ status: number; body: Body }> {
    const bytes = Buffer.from(JSON.stringify(body));
    const { host: _, 'content-length': __, ...headers } = incoming.headers;
    const onward = request({
      hostname: this.#target.hostname,
      port: this.#target.port,
      path: incoming.url,
      method: incoming.method,
      agent: this.#agent,
      headers: { ...headers, 'content-length': bytes.length },
    });
    onward.end(bytes);
    const [response] = (await once(onward, 'response')) as [IncomingMessage];
    const text = (await buffer(response)).toString();
    return { status: response.statusCode ?? 500, body: JSON.parse(text || '{}') as Body };
  }
}

function reply(response: ServerResponse, status: number, body: object): void {
  response.writeHead(status, { 'content-type': 'application/x-amz-json-1.0' });
  response.end(JSON.stringify(body));
}
