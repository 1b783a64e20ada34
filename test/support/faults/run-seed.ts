import { setTimeout as sleep } from 'node:timers/promises';
import { describe } from '../../../src/errors.ts';
import { numberOf, OPEN_BATCHES, until } from './asking.ts';
import { check, complaints, type Checked } from './check.ts';
import { FaultError } from './protocol.ts';
import type { Recovered } from './recovery.ts';
import { scheduleOf, type Schedule } from './schedule.ts';
import { startWorld, type World } from './world.ts';

export interface SeedOptions {
  seed: number;
  /** Messages sent beside those that the faults themselves send. */
  messages: number;
  schedule?: Schedule;
  workerPreloads?: string[];
  /** Called when the stack stands and nothing runs yet. */
  prepare?: (world: World) => Promise<void>;
  onStep?: (words: string) => void;
}

export interface SeedReport {
  seed: number;
  ok: boolean;
  /** What was wrong; empty where all was well. */
  failures: string[];
  findings: Checked['findings'] | null;
  counts: Checked['counts'] | null;
  schedule: string[];
  hits: Record<string, number>;
  recoveries: Recovered[];
  /** Faults that this machine cannot be given, and why. */
  skipped: string[];
  seconds: number;
  /** The ends of what loader and worker wrote, where something was wrong. */
  output?: Record<string, string>;
}

/** How long everything may take to drain once the faults have ended: then it hangs. */
const DRAIN_MS = 240_000;

/** One run: a stack of its own, traffic, the faults of a schedule, calm, and the account of every id. */
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
      await run(world).catch((error: unknown) => failures.push(`${name}: ${told(error)}`));
      await sending;
      world.loader.resume();
      world.worker.resume();
    }
    options.onStep?.('drain');
    failures.push(...(await drain(world)));
    await world.recovery.settle();
    checked = await check(world.superuser, world.traffic.sent, await world.remains());
    failures.push(...complaints(checked.findings), ...world.recovery.failures);
  } catch (error) {
    failures.push(told(error));
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

/** Ends the faults, and waits until nothing moves any more. */
async function drain(world: World): Promise<string[]> {
  const failures: string[] = [];
  // What is planned strikes only while something moves.
  for (let round = 0; world.queue.pending.length > 0 && round < 60; round += 1) {
    await world.traffic.send(40);
    await sleep(500);
  }
  const unstruck = world.queue.pending.map(({ kind }) => kind);
  if (unstruck.length > 0) failures.push(`never struck: ${unstruck.join(', ')}`);
  world.queue.calm();
  const isStill = async (): Promise<boolean> =>
    (await world.remains()).queue.size === 0 &&
    (await numberOf(world.superuser, OPEN_BATCHES)) === 0 &&
    (await numberOf(world.superuser, ROTATING)) === 0 &&
    (await numberOf(world.superuser, 'select masking.is_sealed()::int')) === 0;
  if (!(await until(isStill, DRAIN_MS, 250))) failures.push('it never came to rest');
  return failures;
}

function told(error: unknown): string {
  if (error instanceof FaultError) return error.message;
  // What is in this database is made up: the message may be shown here.
  return error instanceof Error ? `${describe(error)}: ${error.message}` : describe(error);
}
