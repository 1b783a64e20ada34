import { createServer, request, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

/**
 * What happens instead of a response of SQS: an error with this text, a connection reset, or truncated JSON, which the
 * parser's error quotes.
 */
export type Fault = { error: string } | 'reset' | 'cut';

/** An HTTP proxy before the emulator that can make requests fail. */
export class QueueProxy {
  readonly #faults = new Map<string, Fault[]>();
  readonly #target: URL;
  readonly #server = createServer((incoming, reply) => this.#forward(incoming, reply));

  private constructor(endpoint: string) {
    this.#target = new URL(endpoint);
  }

  static async start(endpoint: string): Promise<QueueProxy> {
    const proxy = new QueueProxy(endpoint);
    await new Promise<void>((resolve) => {
      proxy.#server.listen(0, '127.0.0.1', resolve);
    });
    return proxy;
  }

  get endpoint(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Lets the next requests of an action (`ReceiveMessage`, `DeleteMessageBatch`) fail, one for each fault. */
  fail(action: string, faults: Fault[]): void {
    this.#faults.set(action, [...(this.#faults.get(action) ?? []), ...faults]);
  }

  /** Number of faults that have not happened yet. */
  get waiting(): number {
    return [...this.#faults.values()].reduce((sum, faults) => sum + faults.length, 0);
  }

  stop(): Promise<void> {
    this.#server.closeAllConnections();
    return new Promise((resolve) => {
      this.#server.close(() => resolve());
    });
  }

  #forward(incoming: IncomingMessage, reply: ServerResponse): void {
    const action = String(incoming.headers['x-amz-target']).split('.').at(-1) ?? '';
    const forwarded = request(
      { host: this.#target.hostname, port: this.#target.port, path: incoming.url, method: incoming.method, headers: incoming.headers },
      (response) => {
        const chunks: Buffer[] = [];
        response.on('data', (chunk: Buffer) => chunks.push(chunk));
        response.on('end', () => this.#reply(action, response, Buffer.concat(chunks), reply));
      },
    ); // prettier-ignore
    forwarded.on('error', () => reply.destroy());
    incoming.pipe(forwarded);
  }

  #reply(action: string, response: IncomingMessage, body: Buffer, reply: ServerResponse): void {
    // An empty response contains nothing to leak, so the fault waits for the next one.
    const isEmpty = action === 'ReceiveMessage' && !body.includes('"Body"');
    const fault = isEmpty ? undefined : this.#faults.get(action)?.shift();
    if (fault === 'reset') {
      reply.socket?.resetAndDestroy();
      return;
    }
    const type = response.headers['content-type'] ?? 'application/x-amz-json-1.0';
    if (typeof fault === 'object') {
      reply.writeHead(500, { 'content-type': type });
      reply.end(JSON.stringify({ __type: 'com.amazonaws.sqs#InternalFailure', message: fault.error }));
      return;
    }
    reply.writeHead(response.statusCode ?? 500, { 'content-type': type });
    reply.end(fault === 'cut' ? body.subarray(0, body.length - 3) : body);
  }
}
