import { withBenchStack } from './bench-stack.ts';
import { inTurns, median, medianRatio, type Result, type Series } from './benchmark.ts';
import {
  createPeersTables,
  ours,
  peer,
  runRound,
  stop,
  type Contender,
  type CpuTimes,
  type Setup,
} from './contenders.ts';
import { startQueues } from './queues.ts';

const MESSAGES = 40_000;
/** Fewer, because the row-by-row consumer is slow. Its time per message does not depend on their number. */
const MESSAGES_ONE_BY_ONE = 2_000;
const ROUNDS = 5;
/** It takes some 100,000 messages until the JIT compiler has compiled everything. */
const WARM_UP_ROUNDS = 2;
const POLLERS = [1, 2, 4, 8, 16];
const MESSAGES_BY_POLLERS = 20_000;
const ROUNDS_BY_POLLERS = 3;

/**
 * Compares loader and worker, as processes with default settings, with the floor (only receive and delete) and with
 * common alternatives. Measures from the moment the messages are visible until the last one is acknowledged.
 */
export function endToEnd(): Promise<Result> {
  return withBenchStack(async (stack) => {
    const queues = await startQueues();
    try {
      await createPeersTables(stack);
      const setup = { stack, queues };
      const all = await compare(setup);
      return { ...all, postgres: stack.version, series: [await byPollers(setup)] };
    } finally {
      await queues.stop();
    }
  });
}

async function compare(setup: Setup): Promise<Pick<Result, 'how' | 'targets' | 'figures'>> {
  const contenders = {
    ours: ours(setup),
    floor: peer(setup, 'floor'),
    batched: peer(setup, 'batched'),
    rowByRow: peer(setup, 'row-by-row'),
  };
  const cpu: Record<string, CpuTimes[]> = {};
  const turn =
    (contender: Contender, messages = MESSAGES) =>
    async (): Promise<number> => {
      const round = await runRound(setup, contender, messages);
      (cpu[contender.name] ??= []).push(round.cpu);
      return round.perSecond;
    };
  const turnsOf = {
    ours: turn(contenders.ours),
    floor: turn(contenders.floor),
    batched: turn(contenders.batched),
    rowByRow: turn(contenders.rowByRow, MESSAGES_ONE_BY_ONE),
  };
  try {
    await inTurns(WARM_UP_ROUNDS - 1, turnsOf);
    const turns = await inTurns(ROUNDS, turnsOf);
    return {
      how: `${MESSAGES} messages per round (row by row: ${MESSAGES_ONE_BY_ONE}), ${ROUNDS} rounds, a fifth of the values repeated`,
      targets: [
        {
          measure: 'd: masked-logins ÷ SQS floor (messages/s)',
          value: medianRatio(turns.ours, turns.floor),
          atLeast: 0.75,
        },
        {
          measure: 'e: masked-logins ÷ batched consumer (messages/s)',
          value: medianRatio(turns.ours, turns.batched),
          atLeast: 1.2,
        },
        {
          measure: 'f: masked-logins ÷ row by row (messages/s)',
          value: medianRatio(turns.ours, turns.rowByRow),
          atLeast: 6,
        },
      ],
      figures: {
        'masked-logins (messages/s)': median(turns.ours),
        'SQS floor (messages/s)': median(turns.floor),
        'batched consumer (messages/s)': median(turns.batched),
        'row by row (messages/s)': median(turns.rowByRow),
        ...cpuFigures(cpu),
      },
    };
  } finally {
    await stop(Object.values(contenders));
  }
}

/** Throughput of masked-logins and of the floor, by the number of pollers. */
async function byPollers(setup: Setup): Promise<Series> {
  const lines: Series['lines'] = { 'masked-logins': [], 'SQS floor': [] };
  for (const pollers of POLLERS) {
    const ourselves = ours(setup, pollers);
    const floor = peer(setup, 'floor', pollers);
    try {
      const turns = await inTurns(ROUNDS_BY_POLLERS, {
        ours: async () => (await runRound(setup, ourselves, MESSAGES_BY_POLLERS)).perSecond,
        floor: async () => (await runRound(setup, floor, MESSAGES_BY_POLLERS)).perSecond,
      });
      lines['masked-logins']!.push([pollers, median(turns.ours)]);
      lines['SQS floor']!.push([pollers, median(turns.floor)]);
    } finally {
      await stop([ourselves, floor]);
    }
  }
  return {
    title: 'End-to-end throughput by number of pollers',
    x: 'pollers',
    y: 'messages/s',
    lines,
    logarithmic: true,
  };
}

/** The median CPU times. Empty on a machine without /proc. */
function cpuFigures(cpu: Record<string, CpuTimes[]>): Record<string, number> {
  const figures = Object.entries(cpu).flatMap(([contender, rounds]) =>
    Object.keys(rounds[0]!).map((name) => {
      const figure = median(rounds.slice(-ROUNDS).map((round) => round[name]!));
      return [`CPU time, ${contender}: ${name} (µs per message)`, figure] as const;
    }),
  );
  return Object.fromEntries(figures.filter(([, value]) => !Number.isNaN(value)));
}
