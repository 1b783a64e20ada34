import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { ReceiveMessageCommand, type SQSClient } from '@aws-sdk/client-sqs';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { childEnvironment } from '../../local/environment.ts';
import { startEmulator, type Emulator } from '../../local/sqs/emulator.ts';
import { createQueueClient } from '../../src/queue/client.ts';
import { countMessages } from '../../src/queue/counts.ts';
import { inBatches } from '../../local/send/batches.ts';
import { linesOf } from '../../local/send/lines.ts';
import { sendEvents } from '../../local/send/send.ts';

let directory: string;
let emulator: Emulator;
let client: SQSClient;

beforeEach(async () => {
  directory = mkdtempSync(path.join(tmpdir(), 'masked-logins-test-'));
  emulator = await startEmulator();
  client = createQueueClient(
    {
      url: emulator.queueUrl,
      endpoint: emulator.endpoint,
      region: emulator.region,
      credentials: { accessKeyId: 'local', secretAccessKey: 'local' },
    },
    { maxSockets: 8 },
  );
});

afterEach(async () => {
  client.destroy();
  await emulator.stop();
  rmSync(directory, { recursive: true, force: true });
});

function fileWith(content: string): string {
  const file = path.join(directory, 'events.jsonl');
  writeFileSync(file, content);
  return file;
}

async function waiting(): Promise<number> {
  return (await countMessages(client, emulator.queueUrl)).visible;
}

async function sizes(bodies: string[], most?: number): Promise<number[]> {
  const batches: number[] = [];
  for await (const batch of inBatches(bodies, most)) batches.push(batch.length);
  return batches;
}

describe('batches', () => {
  test('hold ten messages, or fewer where a slow rate asks for it', async () => {
    expect(await sizes(Array.from({ length: 23 }, () => 'x'))).toEqual([10, 10, 3]);
    expect(await sizes(['a', 'b', 'c'], 1)).toEqual([1, 1, 1]);
  });

  test('stay within 256 KiB, and a message larger than that travels alone', async () => {
    const half = 'x'.repeat(131_072);
    expect(await sizes([half, half, 'x', 'x'.repeat(500_000), 'x'])).toEqual([2, 1, 1, 1]);
  });

  test('are measured in bytes and not in characters', async () => {
    expect(await sizes(['ü'.repeat(70_000), 'ü'.repeat(70_000)])).toEqual([1, 1]);
  });
});

describe('sending', () => {
  test('puts every body into the queue, once', async () => {
    const bodies = Array.from({ length: 137 }, (_, n) => `body ${n}`);
    const { sent, rejected } = await sendEvents({ client, queueUrl: emulator.queueUrl, bodies });
    expect({ sent, rejected }).toEqual({ sent: 137, rejected: 0 });
    expect(await waiting()).toBe(137);
  });

  test('counts what SQS refuses, and sends the rest', async () => {
    const bodies = ['fine', 'x'.repeat(1_048_577), 'a \u0001 that SQS does not take', 'fine too'];
    const { sent, rejected } = await sendEvents({ client, queueUrl: emulator.queueUrl, bodies });
    expect({ sent, rejected }).toEqual({ sent: 2, rejected: 2 });
    expect(await waiting()).toBe(2);
  });

  test('sends the lines of a file as they are, carriage returns and missing last newline included', async () => {
    const lines = await Array.fromAsync(linesOf(fileWith('{"a": 1}\r\n\nsecond \u2028 line\nlast')));
    expect(lines).toEqual(['{"a": 1}\r', 'second \u2028 line', 'last']);
    await sendEvents({ client, queueUrl: emulator.queueUrl, bodies: lines });
    const { Messages = [] } = await client.send(
      new ReceiveMessageCommand({ QueueUrl: emulator.queueUrl, MaxNumberOfMessages: 10 }),
    );
    expect(Messages.map(({ Body }) => Body).sort()).toEqual(lines.toSorted());
  });

  test('stops when told to, having counted what it sent', async () => {
    const stop = new AbortController();
    const endless = (function* () {
      for (;;) yield 'x';
    })();
    const { sent } = await sendEvents({
      client,
      queueUrl: emulator.queueUrl,
      bodies: endless,
      signal: stop.signal,
      onProgress: () => stop.abort(),
    });
    expect(sent).toBeGreaterThan(0);
    expect(await waiting()).toBe(sent);
  });

  test('ends when there is no such queue', async () => {
    const sending = sendEvents({
      client,
      queueUrl: `${emulator.endpoint}/000000000000/nowhere`,
      bodies: ['x'],
    });
    await expect(sending).rejects.toMatchObject({ name: 'QueueDoesNotExist' });
  });
});

describe('npm run send', () => {
  const command = path.join(import.meta.dirname, '../../local/cli/send.ts');

  async function send(...options: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
    const env = childEnvironment({
      LOCAL_DIR: directory,
      SQS_QUEUE_URL: emulator.queueUrl,
      AWS_ENDPOINT_URL_SQS: emulator.endpoint,
      AWS_REGION: emulator.region,
      AWS_ACCESS_KEY_ID: 'local',
      AWS_SECRET_ACCESS_KEY: 'local',
    });
    try {
      return { code: 0, ...(await promisify(execFile)(process.execPath, [command, ...options], { env })) };
    } catch (error) {
      return error as { code: number; stdout: string; stderr: string };
    }
  }

  test('prints a summary for machines', async () => {
    const { code, stdout } = await send('--count', '25', '--seed', 'test', '--json');
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ sent: 25, rejected: 0, interrupted: false, seed: 'test' });
    expect(await waiting()).toBe(25);
  });

  test.each([
    ['--count', '0'],
    ['--count', '1.5'],
    ['--count', 'many'],
    ['--rate', '0'],
    ['--duplicates', '1.1'],
    ['--malformed', '-1'],
    ['--file', 'x', '--seed', '4'],
    ['--file', '/nowhere/events.jsonl'],
    ['--unheard-of'],
  ])('exits 2 and sends nothing for %s %s', async (...options) => {
    const { code, stderr } = await send(...options);
    expect(code).toBe(2);
    expect(stderr).toContain(options[0]);
    expect(await waiting()).toBe(0);
  });
});
