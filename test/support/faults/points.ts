/**
 * Fault points. `NODE_OPTIONS=--import` loads them into loader and worker; there is no code for them in `src/`.
 *
 * A point is just before or just after an action of the process. If the runner has armed the point, the process reports
 * that it is there, and waits. The runner then kills the process, kills Postgres, or lets the process continue.
 */
import { SQSClient } from '@aws-sdk/client-sqs';
import pg from 'pg';
import type { PointMessage, RunnerMessage } from './protocol.ts';

const STATEMENTS: [RegExp, string][] = [
  [/^copy staging\.inbox/, 'copy'],
  [/^commit$/, 'commit'],
  [/masking\.mask_batch\(/, 'mask'],
  [/staging\.close_batch\(/, 'close'],
  [/masking\.rotate_step\(/, 'rotate'],
  [/staging\.recycle_slots\(/, 'slots'],
  [/staging\.maintain_partitions\(/, 'partitions'],
];

const armed = new Set<string>();
const waiting = new Map<string, () => void>();

async function point(name: string): Promise<void> {
  if (!armed.delete(name)) return;
  const { promise, resolve } = Promise.withResolvers<void>();
  waiting.set(name, resolve);
  process.channel?.ref();
  process.send?.({ at: name } satisfies PointMessage);
  await promise;
  process.channel?.unref();
}

process.on('message', (message: RunnerMessage) => {
  if ('arm' in message) armed.add(message.arm);
  else if ('go' in message) waiting.get(message.go)?.();
  else shiftClock(message.shift);
});
// Without a runner, the process must not stay.
process.on('disconnect', () => process.exit(1));
process.channel?.unref();

/** Shifts the wall clock of this process. Its monotonic clock, its timers, Postgres and the queue are not affected. */
function shiftClock(ms: number): void {
  class ShiftedDate extends RealDate {
    constructor(...args: []) {
      if (args.length === 0) super(RealDate.now() + ms);
      else super(...args);
    }
    static override now(): number {
      return RealDate.now() + ms;
    }
  }
  globalThis.Date = ShiftedDate as DateConstructor;
}
const RealDate = Date;

type Callback = (error: unknown, result?: unknown) => void;
type Query = (this: pg.Client, config: unknown, values?: unknown, callback?: Callback) => unknown;

const prototype = pg.Client.prototype as unknown as { query: Query };
const query = prototype.query;
prototype.query = function (config, values, callback) {
  const text = typeof config === 'string' ? config : ((config as { text?: unknown } | null)?.text ?? '');
  const name = STATEMENTS.find(([pattern]) => pattern.test(String(text)))?.[1];
  if (name === undefined) return query.call(this, config, values, callback);
  if (name === 'copy') {
    stopHalfway(config as CopyStream);
    return query.call(this, config, values, callback);
  }
  if (!armed.has(`${name}:before`) && !armed.has(`${name}:after`)) {
    return query.call(this, config, values, callback);
  }
  const onResult = typeof values === 'function' ? (values as Callback) : callback;
  const parameters = typeof values === 'function' ? undefined : values;
  const queryWithPoints = async (): Promise<unknown> => {
    await point(`${name}:before`);
    const result = await query.call(this, config, parameters);
    await point(`${name}:after`);
    return result;
  };
  if (onResult === undefined) return queryWithPoints();
  queryWithPoints().then((result) => onResult(undefined, result), onResult);
  return undefined;
};

/** The parts of a stream of pg-copy-streams 7.0.0 that are used here. */
interface CopyStream {
  chunks: { chunk: Buffer }[];
  connection: { stream: { write(data: Buffer): unknown } } | null;
  flush(callback?: () => void): void;
}

/** Sends half of the data, and the rest when the runner lets the process continue. */
function stopHalfway(stream: CopyStream): void {
  if (!armed.has('copy:middle')) return;
  const flush = stream.flush.bind(stream);
  const afterwards = async (callback?: () => void): Promise<void> => {
    await point('copy:middle');
    // Without a connection, the stream has already failed and reported it.
    if (stream.connection !== null) flush(callback);
  };
  stream.flush = (callback) => {
    const data = Buffer.concat(stream.chunks.map(({ chunk }) => chunk));
    const middle = Math.floor(data.length / 2);
    const header = Buffer.alloc(5);
    header.write('d');
    header.writeUInt32BE(middle + 4, 1);
    stream.connection?.stream.write(header);
    stream.connection?.stream.write(data.subarray(0, middle));
    stream.chunks = [{ chunk: data.subarray(middle) }];
    stream.flush = flush;
    void afterwards(callback);
  };
}

type Send = (this: SQSClient, command: object, ...rest: unknown[]) => Promise<{ Messages?: unknown[] }>;

const client = SQSClient.prototype as unknown as { send: Send };
const send = client.send;
client.send = async function (command, ...rest) {
  if (command.constructor.name !== 'ReceiveMessageCommand') return send.call(this, command, ...rest);
  await point('receive:before');
  const response = await send.call(this, command, ...rest);
  // With an empty response, no message was received.
  if ((response.Messages?.length ?? 0) > 0) await point('receive:after');
  return response;
};
