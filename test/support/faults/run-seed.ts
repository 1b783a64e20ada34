import { setTimeout as sleep } from 'node:timers/promises';
import { describe } from '../../../src/errors.ts';
import { numberOf, PENDING_BATCHES, until } from './polling.ts';
import { check, problemsIn, type Checked } from './check.ts';
import { FaultError } from './protocol.ts';
import type { Recovered } from './recovery.ts';
import { scheduleOf, type Schedule } from './schedule.ts';
import { startWorld, type World } from './world.ts';

export interface SeedOptions {
  seed: number;
  /** Messages to send, in addition to those that the faults send. */
  messages: number;
  schedule?: Schedule;
  workerPreloads?: string[];
  /** Called after the stack has started, before loader and worker start. */
  prepare?: (world: World) => Promise<void>;
  onStep?: (name: string) => void;
}

export interface SeedReport {
  seed: number;
  ok: boolean;
  /** What failed; empty if the run passed. */
  failures: string[];
  findings: Checked['findings'] | null;
  counts: Checked['counts'] | null;
  schedule: string[];
  hits: Record<string, number>;
  recoveries: Recovered[];
  /** Faults that cannot be injected on this machine, and why. */
  skipped: string[];
  seconds: number;
  /** The last output of loader and worker, if the run failed. */
  output?: Record<string, string>;
}

/** How long the pipeline may take to drain after the last fault, in milliseconds. Only a hang takes longer. */
const DRAIN_MS = 240_000;

/** One run: starts a stack, sends traffic, injects the faults of a schedule, drains, and accounts for every message. */
export async function runSeed(options: SeedOptions): Promise<SeedReport> {
  const startedAt = performance.now();
  const schedule = options.schedule ?? scheduleOf(options.seed);
  const world = await startWorld(options);
  const failures: string[] = [];
  let checked: Checked | null = null;
  try {
    await options.prepare?.(world);
    world.queue.plan(schedule.queueFaults);
    world.loader.start();
    world.worker.start();
    const share = Math.ceil(options.messages / Math.max(1, schedule.steps.length));
    for (const { name, run } of schedule.steps) {
      options.onStep?.(name);
      const sending = world.traffic.send(share);
      await run(world).catch((error: unknown) => failures.push(`${name}: ${messageOf(error)}`));
      await sending;
      world.loader.resume();
      world.worker.resume();
    }
    options.onStep?.('drain');
    failures.push(...(await drain(world)));
    await world.recovery.settle();
    checked = await check(world.superuser, world.traffic.sent, await world.remains());
    failures.push(...problemsIn(checked.findings), ...world.recovery.failures);
  } catch (error) {
    failures.push(messageOf(error));
  } finally {
    await world.stop();
  }
  const { loader, worker } = world;
  for (const { name, unexpected } of [loader, worker]) {
    failures.push(...unexpected.map((end) => `the ${name} ended by itself (${end})`));
  }
  return {
    seed: options.seed,
    ok: failures.length === 0,
    failures,
    findings: checked?.findings ?? null,
    counts: checked?.counts ?? null,
    schedule: schedule.steps.map(({ name }) => name),
    hits: Object.fromEntries([...world.hits].sort()),
    recoveries: world.recovery.all,
    skipped: world.skipped,
    seconds: Math.round((performance.now() - startedAt) / 1_000),
    ...(failures.length > 0 && { output: { loader: loader.output, worker: worker.output } }),
  };
}

const ROTATING = `select count(*) from masking.rotations where state <> 'done'`;

/** Waits for the remaining faults, and then until queue, staging and rotations are done. Returns failures. */
async function drain(world: World): Promise<string[]> {
  const failures: string[] = [];
  // The queue's faults take effect only while there is traffic.
  for (let round = 0; world.queue.pending.length > 0 && round < 60; round += 1) {
    await world.traffic.send(40);
    await sleep(500);
  }
  const missed = world.queue.pending.map(({ kind }) => kind);
  if (missed.length > 0) failures.push(`faults without effect: ${missed.join(', ')}`);
  world.queue.cancelFaults();
  const isDrained = async (): Promise<boolean> =>
    (await world.remains()).queue.size === 0 &&
    (await numberOf(world.superuser, PENDING_BATCHES)) === 0 &&
    (await numberOf(world.superuser, ROTATING)) === 0 &&
    (await numberOf(world.superuser, 'select masking.is_sealed()::int')) === 0;
  if (!(await until(isDrained, DRAIN_MS, 250))) failures.push('the pipeline did not drain');
  return failures;
}

function messageOf(error: unknown): string {
  if (error instanceof FaultError) return error.message;
  // The database has only made-up values, so the message may be shown.
  return error instanceof Error ? `${describe(error)}: ${error.message}` : describe(error);
}
