/**
 * Fault points, loaded into loader and worker by `NODE_OPTIONS=--import`: the product has no line for them.
 *
 * Where the process is about to do something, or has just done it, it tells the runner and waits for its word, if the
 * runner has armed that point. The runner may kill the process there, or Postgres, or let it go on.
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
// A runner that is gone must not leave its processes behind.
process.on('disconnect', () => process.exit(1));
process.channel?.unref();

/** Moves this process's wall clock. Its monotonic clock and timers, Postgres and the queue keep their time. */
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
    stopInTheMiddle(config as CopyStream);
    return query.call(this, config, values, callback);
  }
  if (!armed.has(`${name}:before`) && !armed.has(`${name}:after`)) {
    return query.call(this, config, values, callback);
  }
  const answer = typeof values === 'function' ? (values as Callback) : callback;
  const parameters = typeof values === 'function' ? undefined : values;
  const whole = async (): Promise<unknown> => {
    await point(`${name}:before`);
    const result = await query.call(this, config, parameters);
    await point(`${name}:after`);
    return result;
  };
  if (answer === undefined) return whole();
  whole().then((result) => answer(undefined, result), answer);
  return undefined;
};

/** What is used here of a stream of pg-copy-streams 7.0.0. */
interface CopyStream {
  chunks: { chunk: Buffer }[];
  connection: { stream: { write(data: Buffer): unknown } } | null;
  flush(callback?: () => void): void;
}

/** Puts half of the rows on the wire, and the rest when the runner says so. */
function stopInTheMiddle(stream: CopyStream): void {
  if (!armed.has('copy:middle')) return;
  const flush = stream.flush.bind(stream);
  const afterwards = async (callback?: () => void): Promise<void> => {
    await point('copy:middle');
    // Without a connection the stream has failed meanwhile, and has said so.
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
  const answer = await send.call(this, command, ...rest);
  // An empty answer is no message received.
  if ((answer.Messages?.length ?? 0) > 0) await point('receive:after');
  return answer;
};
