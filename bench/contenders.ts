import { readFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { childEnvironment, MASKED_LOGINS } from '../local/environment.ts';
import { FatalError } from '../src/errors.ts';
import { loginEvents } from '../local/send/events.ts';
import type { BenchStack } from './bench-stack.ts';
import { timed } from './benchmark.ts';
import { cpuSeconds } from './cpu.ts';
import { BenchProcess } from './process.ts';
import type { BenchQueue, Queues } from './queues.ts';
import { asBatch } from './scheduling.ts';

/** How long a round may take before it counts as failed, in milliseconds. */
const TOO_LONG_MS = 120_000;
/** What the others' last round has left to do is done by then, in milliseconds. */
const SETTLE_MS = 500;
const LOOK_EVERY_MS = 20;

/** Somebody who moves messages from a queue of their own: processes that run, and wait for messages between rounds. */
export interface Contender {
  name: string;
  queue: BenchQueue;
  processes: BenchProcess[];
  /** How many rows they have made so far. */
  rows: () => Promise<number>;
}

/** CPU time by process, in microseconds a message. */
export type CpuTimes = Record<string, number>;

export interface Round {
  perSecond: number;
  cpu: CpuTimes;
}

export interface Field {
  stack: BenchStack;
  queues: Queues;
}

/** Loader and worker as in production. */
export function ours({ stack, queues }: Field, pollers?: number): Contender {
  const { urls, kekFile } = stack.file;
  const queue = queues.create(`ours-${pollers ?? 'default'}`);
  const environment = environmentOf(queues, queue, pollers);
  return {
    name: 'masked-logins',
    queue,
    processes: [
      new BenchProcess('load', MASKED_LOGINS, ['load', '--follow'], environment(urls.loader)),
      new BenchProcess(
        'worker',
        MASKED_LOGINS,
        ['worker'],
        environment(urls.worker, { MASKING_KEK_FILE: kekFile }),
      ),
    ],
    rows: () => countRows(stack, 'public.user_logins'),
  };
}

/** One of `peers/`. */
export function peer(
  { stack, queues }: Field,
  file: 'floor' | 'batched' | 'row-by-row',
  pollers?: number,
): Contender {
  const queue = queues.create(`${file}-${pollers ?? 'default'}`);
  const environment = environmentOf(queues, queue, pollers)(stack.file.urls.superuser);
  return {
    name: file,
    queue,
    processes: [new BenchProcess(file, path.join(import.meta.dirname, `peers/${file}.ts`), [], environment)],
    // The floor makes no rows: that its queue is empty is all there is to see.
    rows: async () => (file === 'floor' ? 0 : countRows(stack, `bench.${file.replaceAll('-', '_')}`)),
  };
}

/** The tables of `peers/`. */
export async function createPeersTables({ superuser }: BenchStack): Promise<void> {
  await superuser.query(readFileSync(path.join(import.meta.dirname, 'peers/tables.sql'), 'utf8'));
}

const events = loginEvents({ seed: 'end to end', duplicates: 0.2, malformed: 0 });

/** Login events of which a fifth repeat the address and the device of an earlier one. */
export function bodies(count: number): string[] {
  return Array.from({ length: count }, () => events.next().value);
}

/**
 * Gives a contender messages, and takes the time from the moment they are visible to the moment the last of them is
 * deleted.
 *
 * @throws {FatalError} where a process fails, or the rows are not as many as the messages
 */
export async function race({ stack }: Field, contender: Contender, count: number): Promise<Round> {
  const { queue, rows } = contender;
  await ready(contender);
  await sleep(SETTLE_MS);
  const before = await rows();
  const messages = queue.prepare(bodies(count));
  const cpuBefore = cpuOf(stack, contender);
  const seconds = await asBatch(async () => {
    const took = await timed(() => {
      queue.put(messages);
      return orFailure(contender, queue.emptied());
    });
    return took / 1_000;
  });
  const cpuAfter = cpuOf(stack, contender);
  const made = (await rows()) - before;
  if (contender.name !== 'floor' && made !== count)
    throw new FatalError(`${contender.name} made ${made} rows of ${count} messages`);
  const cpu = Object.entries(cpuAfter).map(([name, after]) => [
    name,
    ((after - cpuBefore[name]!) * 1e6) / count,
  ]);
  return { perSecond: count / seconds, cpu: Object.fromEntries(cpu) as CpuTimes };
}

/** Ends the processes of contenders. */
export async function stop(contenders: readonly Contender[]): Promise<void> {
  // A loader ends when its long polls do, which may be in twenty seconds.
  const timer = setInterval(() => contenders.forEach(({ queue }) => queue.dismiss()), LOOK_EVERY_MS);
  await Promise.all(contenders.flatMap(({ processes }) => processes.map((process) => process.stop())));
  clearInterval(timer);
}

/** Waits until a contender waits for messages. */
export async function ready(contender: Contender): Promise<void> {
  const waits = async (): Promise<void> => {
    while (!contender.queue.isAwaited()) await sleep(LOOK_EVERY_MS);
  };
  await orFailure(contender, waits());
}

export async function orFailure({ name, processes }: Contender, work: Promise<void>): Promise<void> {
  const late = new AbortController();
  const tooLate = sleep(TOO_LONG_MS, undefined, { signal: late.signal }).then(() => {
    throw new FatalError(`${name} does not get done`);
  });
  try {
    await Promise.race([work, tooLate, ...processes.map(({ failed }) => failed)]);
  } finally {
    tooLate.catch(() => {});
    late.abort();
  }
}

function cpuOf(stack: BenchStack, { processes }: Contender): Record<string, number> {
  const { user, system } = process.cpuUsage();
  return {
    // The emulator is most of what this process does.
    emulator: (user + system) / 1e6,
    ...Object.fromEntries(processes.map(({ name, pid }) => [name, cpuSeconds(pid)])),
    postgres: cpuSeconds(postmasterOf(stack)),
  };
}

function postmasterOf({ file }: BenchStack): number {
  return Number(readFileSync(path.join(file.dataDirectory, 'postmaster.pid'), 'utf8').split('\n')[0]);
}

async function countRows({ superuser }: BenchStack, table: string): Promise<number> {
  const { rows } = await superuser.query<{ rows: string }>(`select count(*) as rows from ${table}`);
  return Number(rows[0]!.rows);
}

/** What every process gets: the queue, the database, and no setting but, perhaps, the number of pollers. */
function environmentOf({ endpoint, region }: Queues, queue: BenchQueue, pollers: number | undefined) {
  return (databaseUrl: string, more: Record<string, string> = {}): NodeJS.ProcessEnv =>
    childEnvironment({
      DATABASE_URL: databaseUrl,
      SQS_QUEUE_URL: queue.url,
      AWS_ENDPOINT_URL_SQS: endpoint,
      AWS_REGION: region,
      AWS_ACCESS_KEY_ID: 'bench',
      AWS_SECRET_ACCESS_KEY: 'bench',
      ...(pollers !== undefined && { SQS_MAX_POLLERS: String(pollers) }),
      ...more,
    });
}
