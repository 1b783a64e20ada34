import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { QueueSettings } from '../../src/config.ts';

/** A request as SQS sees it. */
export interface SqsRequest {
  /** `ReceiveMessage`, `DeleteMessageBatch`, … */
  action: string;
  // The requests of six actions; each test knows which it is looking at.
  body: { Entries: { Id: string; ReceiptHandle: string; VisibilityTimeout?: number }[] } & Record<
    string,
    unknown
  >;
}

export interface SqsAnswer {
  status?: number;
  body: object;
}

/** An SQS that answers whatever a test wants, and remembers what it was asked. */
export interface FakeSqs {
  queue: QueueSettings;
  requests: SqsRequest[];
  stop: () => Promise<void>;
}

/** The form in which SQS says no. */
export function refusal(type: string, status = 400): SqsAnswer {
  return { status, body: { __type: `com.amazonaws.sqs#${type}`, message: 'no' } };
}

export async function startFakeSqs(
  answer: (request: SqsRequest, number: number) => SqsAnswer | Promise<SqsAnswer>,
): Promise<FakeSqs> {
  const requests: SqsRequest[] = [];
  const server = createServer((incoming, outgoing) => {
    const chunks: Buffer[] = [];
    incoming.on('data', (chunk: Buffer) => chunks.push(chunk));
    incoming.on('end', () => {
      const action = String(incoming.headers['x-amz-target']).replace('AmazonSQS.', '');
      const request = { action, body: JSON.parse(Buffer.concat(chunks).toString()) as SqsRequest['body'] };
      requests.push(request);
      void Promise.resolve(answer(request, requests.length)).then(({ status = 200, body }) =>
        outgoing
          .writeHead(status, { 'content-type': 'application/x-amz-json-1.0' })
          .end(JSON.stringify(body)),
      );
    });
  });
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve);
  });
  const endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    queue: {
      url: `${endpoint}/000000000000/login-queue`,
      endpoint,
      region: 'eu-west-1',
      credentials: { accessKeyId: 'test', secretAccessKey: 'test' },
    },
    requests,
    stop: () => close(server),
  };
}

function close(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve());
    server.closeAllConnections();
  });
}
