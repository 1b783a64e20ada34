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
import { withBatchScheduling } from './scheduling.ts';

/** After this time a round has failed, in milliseconds. */
const TIMEOUT_MS = 120_000;
/** Pause before a round, so that the other contenders finish their work, in milliseconds. */
const SETTLE_MS = 500;
const CHECK_EVERY_MS = 20;

/** Processes that move messages from a queue to a table. Between rounds they keep running and wait for messages. */
export interface Contender {
  name: string;
  queue: BenchQueue;
  processes: BenchProcess[];
  /** The number of rows that the processes have inserted so far. */
  rows: () => Promise<number>;
}

/** CPU time by process, in microseconds per message. */
export type CpuTimes = Record<string, number>;

export interface Round {
  perSecond: number;
  cpu: CpuTimes;
}

export interface Setup {
  stack: BenchStack;
  queues: Queues;
}

/** Loader and worker as in production. */
export function ours({ stack, queues }: Setup, pollers?: number): Contender {
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
  { stack, queues }: Setup,
  file: 'floor' | 'batched' | 'row-by-row',
  pollers?: number,
): Contender {
  const queue = queues.create(`${file}-${pollers ?? 'default'}`);
  const environment = environmentOf(queues, queue, pollers)(stack.file.urls.superuser);
  return {
    name: file,
    queue,
    processes: [new BenchProcess(file, path.join(import.meta.dirname, `peers/${file}.ts`), [], environment)],
    // The floor inserts no rows.
    rows: async () => (file === 'floor' ? 0 : countRows(stack, `bench.${file.replaceAll('-', '_')}`)),
  };
}

/** Creates the tables of `peers/`. */
export async function createPeersTables({ superuser }: BenchStack): Promise<void> {
  await superuser.query(readFileSync(path.join(import.meta.dirname, 'peers/tables.sql'), 'utf8'));
}

const events = loginEvents({ seed: 'end to end', duplicates: 0.2, malformed: 0 });

/** Login events. A fifth of them repeat the address and the device of an earlier event. */
export function bodies(count: number): string[] {
  return Array.from({ length: count }, () => events.next().value);
}

/**
 * Puts messages into a contender's queue, and measures the time from the moment they are visible until the last one is
 * deleted.
 *
 * @throws {FatalError} if a process fails, or if the number of new rows is not the number of messages
 */
export async function runRound({ stack }: Setup, contender: Contender, count: number): Promise<Round> {
  const { queue, rows } = contender;
  await untilReady(contender);
  await sleep(SETTLE_MS);
  const before = await rows();
  const messages = queue.prepare(bodies(count));
  const cpuBefore = cpuOf(stack, contender);
  const seconds = await withBatchScheduling(async () => {
    const took = await timed(() => {
      queue.put(messages);
      return orFailure(contender, queue.emptied());
    });
    return took / 1_000;
  });
  const cpuAfter = cpuOf(stack, contender);
  const inserted = (await rows()) - before;
  if (contender.name !== 'floor' && inserted !== count)
    throw new FatalError(`${contender.name} inserted ${inserted} rows for ${count} messages`);
  const cpu = Object.entries(cpuAfter).map(([name, after]) => [
    name,
    ((after - cpuBefore[name]!) * 1e6) / count,
  ]);
  return { perSecond: count / seconds, cpu: Object.fromEntries(cpu) as CpuTimes };
}

/** Stops the processes of contenders. */
export async function stop(contenders: readonly Contender[]): Promise<void> {
  // A loader waits for its long polls, which can take twenty seconds, so they are ended.
  const timer = setInterval(() => contenders.forEach(({ queue }) => queue.endPolls()), CHECK_EVERY_MS);
  await Promise.all(contenders.flatMap(({ processes }) => processes.map((process) => process.stop())));
  clearInterval(timer);
}

/** Waits until a contender is polling its queue. */
export async function untilReady(contender: Contender): Promise<void> {
  const polling = async (): Promise<void> => {
    while (!contender.queue.isPolled()) await sleep(CHECK_EVERY_MS);
  };
  await orFailure(contender, polling());
}

/** Waits for `work`. Throws if it takes too long, or if a process of the contender fails. */
export async function orFailure({ name, processes }: Contender, work: Promise<void>): Promise<void> {
  const finished = new AbortController();
  const timeout = sleep(TIMEOUT_MS, undefined, { signal: finished.signal }).then(() => {
    throw new FatalError(`${name} did not finish in time`);
  });
  try {
    await Promise.race([work, timeout, ...processes.map(({ failed }) => failed)]);
  } finally {
    timeout.catch(() => {});
    finished.abort();
  }
}

function cpuOf(stack: BenchStack, { processes }: Contender): Record<string, number> {
  const { user, system } = process.cpuUsage();
  return {
    // This process mostly runs the emulator.
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

/** The environment of a process: the queue, the database, and default settings except for the number of pollers. */
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
