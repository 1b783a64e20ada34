import { setTimeout as sleep } from 'node:timers/promises';
import { loginEvents } from '../local/send/events.ts';
import { withBenchStack } from './bench-stack.ts';
import { median, type Result } from './benchmark.ts';
import { orFailure, ours, stop, untilReady, type Contender } from './contenders.ts';
import type { BenchProcess } from './process.ts';
import { startQueues } from './queues.ts';

const FIRST = 50_000;
const LAST = 1_000_000;
const POINTS = [FIRST, 100_000, 200_000, 300_000, 400_000, 500_000, 600_000, 700_000, 800_000, 900_000, LAST];
/** Samples at each point, and the milliseconds between them: garbage collection makes single samples vary. */
const SAMPLES = 21;
const SAMPLE_EVERY_MS = 100;

/** The number of visible messages at any time: enough for every poll to be full. */
const VISIBLE = 20_000;
const CHUNK = 500;
const FEED_EVERY_MS = 10;
/** The share of repeated values. Few new values make masking fast, so that the loader is the bottleneck. */
const REPEATED = 0.95;

/** Compares the resident memory of loader and worker after a million messages with that after the first 50,000. */
export function memory(): Promise<Result> {
  return withBenchStack(async (stack) => {
    const queues = await startQueues();
    const contender = ours({ stack, queues });
    try {
      await untilReady(contender);
      const [loader, worker] = await measure(contender);
      return {
        how: `${LAST} messages without a pause; resident memory, at each point the median of ${SAMPLES} samples`,
        postgres: stack.version,
        targets: [
          {
            measure: `i: loader's memory after ${LAST} messages ÷ after ${FIRST}`,
            value: growth(loader),
            atMost: 1.15,
          },
        ],
        figures: {
          [`loader after ${FIRST} messages (MiB)`]: loader[0]![1],
          [`loader after ${LAST} messages (MiB)`]: loader.at(-1)![1],
          [`worker after ${FIRST} messages (MiB)`]: worker[0]![1],
          [`worker after ${LAST} messages (MiB)`]: worker.at(-1)![1],
        },
        series: [
          {
            title: 'Memory by messages loaded',
            x: 'messages loaded',
            y: 'resident memory (MiB)',
            lines: { loader, worker },
          },
        ],
      };
    } finally {
      await stop([contender]);
      await queues.stop();
    }
  });
}

type Points = [messages: number, mib: number][];

async function measure(contender: Contender): Promise<[loader: Points, worker: Points]> {
  const [loader, worker] = contender.processes as [BenchProcess, BenchProcess];
  const measured: [Points, Points] = [[], []];
  const feed = startFeed(contender);
  try {
    for (const point of POINTS) {
      await orFailure(contender, feed.reached(point));
      const samples: [number[], number[]] = [[], []];
      for (let n = 0; n < SAMPLES; n += 1) {
        samples[0].push(loader.residentMiB());
        samples[1].push(worker.residentMiB());
        await sleep(SAMPLE_EVERY_MS);
      }
      measured[0].push([point, median(samples[0])]);
      measured[1].push([point, median(samples[1])]);
    }
  } finally {
    feed.stop();
  }
  return measured;
}

/** Keeps the queue filled. `reached` waits until a number of messages has been acknowledged. */
function startFeed({ queue }: Contender) {
  const events = loginEvents({ seed: 'memory', duplicates: REPEATED, malformed: 0 });
  let put = 0;
  const timer = setInterval(() => {
    if (queue.left() >= VISIBLE) return;
    queue.put(queue.prepare(Array.from({ length: CHUNK }, () => events.next().value)));
    put += CHUNK;
  }, FEED_EVERY_MS);
  return {
    reached: async (messages: number): Promise<void> => {
      while (put - queue.left() < messages) await sleep(FEED_EVERY_MS);
    },
    stop: () => clearInterval(timer),
  };
}

function growth(points: Points): number {
  return points.at(-1)![1] / points[0]![1];
}
