import { seededRandom, type Random } from '../../../local/send/random.ts';
import { fillRealDisk } from './disk.ts';
import { killAt, MOMENTS } from './kills.ts';
import { cut, fillDisk, reset, slow, stall, stopImmediately, terminate } from './postgres-faults.ts';
import { QUEUE_FAULTS, type Operation, type PlannedFault } from './queue-proxy.ts';
import {
  failRepeatedly,
  jumpClock,
  longOverload,
  overload,
  stopTwice,
  stopUnderLoad,
  withoutKek,
} from './scenarios.ts';
import type { World } from './world.ts';

/** One fault of a schedule. */
export interface Step {
  name: string;
  run: (world: World) => Promise<void>;
}

export interface Schedule {
  steps: Step[];
  queueFaults: PlannedFault[];
}

const OVERLOAD_SECONDS = 6;
/** The long overload happens once in a long run. */
const LONG_OVERLOAD_SECONDS = 600;

const KILLS: Step[] = MOMENTS.flatMap((moment) =>
  (['process', 'Postgres'] as const).map((victim) => ({
    name: `kill ${victim} ${moment.name}`,
    run: (world: World) => killAt(world, moment, victim),
  })),
);

const POSTGRES: Step[] = [
  { name: 'immediate shutdown of Postgres', run: stopImmediately },
  { name: 'terminate connections of the loader', run: (world) => terminate(world, 'loader') },
  { name: 'terminate connections of the worker', run: (world) => terminate(world, 'worker') },
  { name: 'disk full', run: fillRealDisk },
  { name: 'disk full when staging', run: (world) => fillDisk(world, 'staging.batches') },
  { name: 'disk full when masking', run: (world) => fillDisk(world, 'public.user_logins') },
];

const NETWORK: Step[] = [
  { name: 'latency', run: (world) => slow(world, 'latency') },
  { name: 'low bandwidth', run: (world) => slow(world, 'bandwidth') },
  { name: 'reset connections', run: reset },
  { name: 'cut before COMMIT', run: (world) => cut(world, 'commit:before') },
  { name: 'cut after COMMIT', run: (world) => cut(world, 'commit:after') },
  { name: 'cut after getting a job', run: (world) => cut(world, 'job:after') },
  { name: 'cut after masking', run: (world) => cut(world, 'mask:after') },
  { name: 'stalled network', run: stall },
];

const SCENARIOS: Step[] = [
  { name: 'SIGTERM under load', run: stopUnderLoad },
  { name: 'SIGTERM twice', run: stopTwice },
  { name: 'overload', run: (world) => overload(world, OVERLOAD_SECONDS) },
  { name: 'without the KEK', run: withoutKek },
  { name: 'clock jump', run: jumpClock },
  { name: 'a hundred failing batches', run: failRepeatedly },
];

/**
 * How many faults of each group a seed has. Seeds take them in turn, so that 40 seeds have each fault at least ten
 * times.
 */
const PER_SEED: [Step[], number][] = [
  [KILLS, 6],
  [POSTGRES, 2],
  [NETWORK, 2],
  [SCENARIOS, 2],
];

/** All faults. */
export const ALL_STEPS: readonly Step[] = [...KILLS, ...POSTGRES, ...NETWORK, ...SCENARIOS];

/** The faults of a seed, in the seed's order. The same seed gives the same schedule. */
export function scheduleOf(seed: number): Schedule {
  const random = seededRandom(`schedule ${seed}`);
  const steps = PER_SEED.flatMap(([group, count]) =>
    Array.from({ length: count }, (_, index) => group[(seed * count + index) % group.length]!),
  );
  return { steps: shuffled(random, steps), queueFaults: queueFaults(random, 1) };
}

/** Every fault, `rounds` times, and then ten minutes of overload. */
export function longSchedule(seed: number, rounds: number): Schedule {
  const random = seededRandom(`schedule ${seed}`);
  const steps = Array.from({ length: rounds }, () => shuffled(random, ALL_STEPS)).flat();
  steps.push({
    name: 'overload for ten minutes',
    run: (world) => longOverload(world, LONG_OVERLOAD_SECONDS),
  });
  return { steps, queueFaults: queueFaults(random, rounds) };
}

/** Each kind once per round. Timeouts come first, because they take longest. */
function queueFaults(random: Random, rounds: number): PlannedFault[] {
  const planned = (operation: Operation): PlannedFault[] =>
    Array.from({ length: rounds }, () => shuffled(random, QUEUE_FAULTS[operation]))
      .flat()
      .sort((a, b) => Number(b === 'sqs timeout') - Number(a === 'sqs timeout'))
      .map((kind) => ({ operation, kind, skip: random.integer(2, 8) }));
  return [...planned('ReceiveMessage'), ...planned('DeleteMessageBatch')];
}

function shuffled<T>(random: Random, items: readonly T[]): T[] {
  const shuffled = [...items];
  for (let at = shuffled.length - 1; at > 0; at -= 1) {
    const other = random.integer(0, at);
    [shuffled[at], shuffled[other]] = [shuffled[other]!, shuffled[at]!];
  }
  return shuffled;
}
