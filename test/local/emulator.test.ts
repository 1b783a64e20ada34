import { mkdtempSync, rmSync } from 'node:fs';
import { networkInterfaces, tmpdir } from 'node:os';
import path from 'node:path';
import {
  ChangeMessageVisibilityBatchCommand,
  GetQueueAttributesCommand,
  ReceiveMessageCommand,
  SendMessageCommand,
  type SQSClient,
} from '@aws-sdk/client-sqs';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { startEmulator, type Emulator } from '../../local/sqs/emulator.ts';
import { createQueueClient } from '../../src/queue/client.ts';

let directory: string;
let emulator: Emulator;
let client: SQSClient;

beforeEach(async () => {
  directory = mkdtempSync(path.join(tmpdir(), 'masked-logins-test-'));
  await start();
});

afterEach(async () => {
  client.destroy();
  await emulator.stop();
  rmSync(directory, { recursive: true, force: true });
});

async function start(port?: number): Promise<void> {
  emulator = await startEmulator({ dataDirectory: directory, port });
  client = createQueueClient(
    {
      url: emulator.queueUrl,
      endpoint: emulator.endpoint,
      region: emulator.region,
      credentials: { accessKeyId: 'local', secretAccessKey: 'local' },
    },
    { maxSockets: 4 },
  );
}

async function restart(): Promise<void> {
  client.destroy();
  const { port } = emulator;
  await emulator.stop();
  await start(port);
}

async function receive() {
  const { Messages = [] } = await client.send(
    new ReceiveMessageCommand({
      QueueUrl: emulator.queueUrl,
      MaxNumberOfMessages: 10,
      MessageSystemAttributeNames: ['ApproximateReceiveCount'],
    }),
  );
  return Messages;
}

describe('the SQS emulator', () => {
  test('has a queue with a dead-letter queue that no outage fills', async () => {
    const { Attributes } = await client.send(
      new GetQueueAttributesCommand({ QueueUrl: emulator.queueUrl, AttributeNames: ['All'] }),
    );
    expect(Attributes).toMatchObject({ VisibilityTimeout: '300' });
    expect(JSON.parse(Attributes?.['RedrivePolicy'] ?? '')).toMatchObject({ maxReceiveCount: 50 });
  });

  test('keeps port, queue and messages over a restart', async () => {
    const { port, queueUrl } = emulator;
    await client.send(new SendMessageCommand({ QueueUrl: queueUrl, MessageBody: 'kept' }));
    await restart();
    expect(emulator).toMatchObject({ port, queueUrl });
    expect((await receive()).map(({ Body }) => Body)).toEqual(['kept']);
  });

  test('loses no message that is given back, before and after a restart', async () => {
    await client.send(new SendMessageCommand({ QueueUrl: emulator.queueUrl, MessageBody: 'given back' }));
    const [message] = await receive();
    await client.send(
      new ChangeMessageVisibilityBatchCommand({
        QueueUrl: emulator.queueUrl,
        Entries: [{ Id: '0', ReceiptHandle: message?.ReceiptHandle, VisibilityTimeout: 0 }],
      }),
    );
    await restart();
    expect(await receive()).toMatchObject([
      { Body: 'given back', Attributes: { ApproximateReceiveCount: '2' } },
    ]);
  });

  test('cannot be reached from another machine', async () => {
    const outside = Object.values(networkInterfaces())
      .flatMap((addresses) => addresses ?? [])
      .filter(({ internal, family }) => !internal && family === 'IPv4');
    for (const { address } of outside) {
      await expect(fetch(`http://${address}:${emulator.port}/health`)).rejects.toThrow('fetch failed');
    }
    expect((await fetch(`${emulator.endpoint}/health`)).status).toBe(200);
  });
});
