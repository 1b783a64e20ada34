import { createServer, request, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

/**
 * What becomes of an answer of SQS: an error that quotes something, a connection that breaks instead, or JSON that breaks off, which a parser's error
 * quotes.
 */
export type Fault = { error: string } | 'reset' | 'cut';

/** A way to the emulator that a test can break, for requests of one kind at a time. */
export class QueueProxy {
  readonly #faults = new Map<string, Fault[]>();
  readonly #target: URL;
  readonly #server = createServer((incoming, answer) => this.#forward(incoming, answer));

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

  /** Has the next requests of a kind (`ReceiveMessage`, `DeleteMessageBatch`) fail, one a fault. */
  fail(action: string, faults: Fault[]): void {
    this.#faults.set(action, [...(this.#faults.get(action) ?? []), ...faults]);
  }

  /** How many faults have not struck yet. */
  get waiting(): number {
    return [...this.#faults.values()].reduce((sum, faults) => sum + faults.length, 0);
  }

  stop(): Promise<void> {
    this.#server.closeAllConnections();
    return new Promise((resolve) => {
      this.#server.close(() => resolve());
    });
  }

  #forward(incoming: IncomingMessage, answer: ServerResponse): void {
    const action = String(incoming.headers['x-amz-target']).split('.').at(-1) ?? '';
    const forwarded = request(
      { host: this.#target.hostname, port: this.#target.port, path: incoming.url, method: incoming.method, headers: incoming.headers },
      (response) => {
        const chunks: Buffer[] = [];
        response.on('data', (chunk: Buffer) => chunks.push(chunk));
        response.on('end', () => this.#answer(action, response, Buffer.concat(chunks), answer));
      },
    ); // prettier-ignore
    forwarded.on('error', () => answer.destroy());
    incoming.pipe(forwarded);
  }

  #answer(action: string, response: IncomingMessage, body: Buffer, answer: ServerResponse): void {
    // An empty answer quotes nothing, so the fault waits for the next.
    const isEmpty = action === 'ReceiveMessage' && !body.includes('"Body"');
    const fault = isEmpty ? undefined : this.#faults.get(action)?.shift();
    if (fault === 'reset') {
      answer.socket?.resetAndDestroy();
      return;
    }
    const type = response.headers['content-type'] ?? 'application/x-amz-json-1.0';
    if (typeof fault === 'object') {
      answer.writeHead(500, { 'content-type': type });
      answer.end(JSON.stringify({ __type: 'com.amazonaws.sqs#InternalFailure', message: fault.error }));
      return;
    }
    answer.writeHead(response.statusCode ?? 500, { 'content-type': type });
    answer.end(fault === 'cut' ? body.subarray(0, body.length - 3) : body);
  }
}
