import pg from 'pg';
import { closeAll, maskBatch, maskKnown, ROWS, stageBodies } from './batches.ts';
import { fill, PREFILLED, runSql, withBenchStack, type BenchStack } from './bench-stack.ts';
import { inTurns, median, medianRatio, timed, type Result } from './benchmark.ts';
import { Bodies, MOSTLY_KNOWN } from './bodies.ts';

/** Batches per turn. */
const BATCHES = 8;
const ROUNDS = 11;

/**
 * Compares two workers' connections that share the batches of a turn with one connection. Only Postgres is measured.
 */
export function workers(): Promise<Result> {
  return withBenchStack(async (stack) => {
    const bodies = new Bodies();
    await runSql(stack, 'fill.sql');
    await maskKnown(stack, bodies);
    const second = new pg.Client({ connectionString: stack.file.urls.worker });
    await second.connect();
    try {
      await fill(stack, PREFILLED.logins, PREFILLED.entries, [stack.worker, second]);
      const { one, two } = await inTurns(ROUNDS, {
        one: () => turn(stack, bodies, [stack.worker]),
        two: () => turn(stack, bodies, [stack.worker, second]),
      });
      const perSecond = (took: number[]): number => (BATCHES * ROWS * 1_000) / median(took);
      return {
        how: `${BATCHES} batches of ${ROWS} rows per turn, ${MOSTLY_KNOWN * 100}% new values, ${ROUNDS} rounds`,
        postgres: stack.version,
        targets: [
          { measure: 'c: two workers ÷ one worker (rows/s)', value: medianRatio(one, two), atLeast: 1.6 },
        ],
        figures: { 'one worker (rows/s)': perSecond(one), 'two workers (rows/s)': perSecond(two) },
      };
    } finally {
      await second.end();
    }
  });
}

/** Masks the batches of one turn. Returns how long the connections take together, in milliseconds. */
async function turn(stack: BenchStack, bodies: Bodies, connections: pg.Client[]): Promise<number> {
  const batches: string[] = [];
  for (let n = 0; n < BATCHES; n += 1)
    batches.push(await stageBodies(stack, bodies.take(ROWS, MOSTLY_KNOWN)));
  const maskBatches = async (connection: pg.Client): Promise<void> => {
    for (let id = batches.shift(); id !== undefined; id = batches.shift()) await maskBatch(connection, id);
  };
  const took = await timed(() => Promise.all(connections.map(maskBatches)));
  await closeAll(stack);
  return took;
}
