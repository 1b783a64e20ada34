import { clear, fill, PREFILLED, runSql, withBenchStack, type BenchStack } from './bench-stack.ts';
import { timeMasking, maskKnown, timeFloor, ROWS } from './batches.ts';
import { inTurns, median, medianRatio, type Result, type Series } from './benchmark.ts';
import { Bodies, MOSTLY_KNOWN } from './bodies.ts';

const ROUNDS = 25;
const SERIES_ROUNDS = 7;
const SHARES = [0, 0.02, 0.05, 0.1, 0.25, 0.5, 1];
const BATCH_SIZES = [100, 250, 500, 1_000, 2_000, 4_000, 8_000];

/**
 * Compares `mask_batch` on one connection with the floor: parsing and inserting the same staged rows without masking.
 */
export function masking(): Promise<Result> {
  return withBenchStack(async (stack) => {
    const bodies = new Bodies();
    await prepare(stack, bodies);
    const turns = await inTurns(ROUNDS, {
      floorOfKnown: () => timeFloor(stack, bodies.take(ROWS, MOSTLY_KNOWN)),
      known: () => timeMasking(stack, bodies.take(ROWS, MOSTLY_KNOWN)),
      floorOfFresh: () => timeFloor(stack, bodies.take(ROWS, 1)),
      fresh: () => timeMasking(stack, bodies.take(ROWS, 1)),
    });
    const defaults = await againstDefaults(stack, bodies);
    const series = [await byShare(stack, bodies), await byBatchSize(stack, bodies)];
    const defaultsFirst = await againstDefaults(stack, bodies, clear);
    return {
      how: `Batches of ${ROWS} rows on one connection, ${ROUNDS} rounds; the tables contain ${PREFILLED.logins} logins and ${PREFILLED.entries} vault entries`,
      postgres: stack.version,
      targets: [
        {
          measure: `a: mask_batch ÷ floor, ${MOSTLY_KNOWN * 100}% new values (rows/s)`,
          value: medianRatio(turns.floorOfKnown, turns.known),
          atLeast: 0.7,
        },
        {
          measure: 'b: mask_batch ÷ floor, all values new (rows/s)',
          value: medianRatio(turns.floorOfFresh, turns.fresh),
          atLeast: 0.35,
        },
        {
          measure: "g: mask_batch ÷ pgcrypto's defaults, all values new (rows/s)",
          value: medianRatio(defaults.theirs, defaults.ours),
          atLeast: 8,
        },
      ],
      figures: {
        [`floor, ${MOSTLY_KNOWN * 100}% new values (µs per row)`]: microseconds(turns.floorOfKnown),
        [`mask_batch, ${MOSTLY_KNOWN * 100}% new values (µs per row)`]: microseconds(turns.known),
        'floor, all values new (µs per row)': microseconds(turns.floorOfFresh),
        'mask_batch, all values new (µs per row)': microseconds(turns.fresh),
        "pgcrypto's defaults, all values new (µs per row)": microseconds(defaults.theirs),
        "mask_batch ÷ pgcrypto's defaults, first batch into empty tables (rows/s)": medianRatio(
          defaultsFirst.theirs,
          defaultsFirst.ours,
        ),
      },
      series,
    };
  });
}

async function prepare(stack: BenchStack, bodies: Bodies): Promise<void> {
  await runSql(stack, 'floor.sql');
  await runSql(stack, 'fill.sql');
  await maskKnown(stack, bodies);
  await fill(stack, PREFILLED.logins, PREFILLED.entries);
  await stack.superuser.query('select bench.fill_plain()');
}

/** Compares with the default options of `pgp_sym_encrypt`: AES-128, and key stretching for every value. */
async function againstDefaults(
  stack: BenchStack,
  bodies: Bodies,
  prepareTurn?: (stack: BenchStack) => Promise<void>,
): Promise<Record<'ours' | 'theirs', number[]>> {
  const { rows } = await stack.superuser.query<{ ours: string }>('select masking.cipher_options() as ours');
  const ours = async () => {
    await prepareTurn?.(stack);
    return timeMasking(stack, bodies.take(ROWS, 1));
  };
  const theirs = async () => {
    await setCipherOptions(stack, '');
    const took = await ours();
    await setCipherOptions(stack, rows[0]!.ours);
    return took;
  };
  return inTurns(SERIES_ROUNDS, { ours, theirs });
}

async function setCipherOptions({ superuser }: BenchStack, options: string): Promise<void> {
  await superuser.query(
    `create or replace function masking.cipher_options() returns text language sql immutable parallel safe
       as $$ select '${options}' $$`,
  );
}

async function byShare(stack: BenchStack, bodies: Bodies): Promise<Series> {
  const contenders: Record<string, () => Promise<number>> = Object.fromEntries(
    SHARES.map((share) => [share, () => timeMasking(stack, bodies.take(ROWS, share))]),
  );
  const floor: string = 'floor';
  const turns = await inTurns(SERIES_ROUNDS, {
    ...contenders,
    [floor]: () => timeFloor(stack, bodies.take(ROWS, 0)),
  });
  const line = (name: (share: number) => string): [number, number][] =>
    SHARES.map((share) => [share * 100, perSecond(turns[name(share)]!, ROWS)]);
  return {
    title: 'Masking throughput by share of new values',
    x: 'values not yet in the vault (%)',
    y: 'rows/s',
    lines: { mask_batch: line(String), 'floor (no masking)': line(() => floor) },
  };
}

async function byBatchSize(stack: BenchStack, bodies: Bodies): Promise<Series> {
  const names = BATCH_SIZES.flatMap((rows) => [
    [`ours ${rows}`, () => timeMasking(stack, bodies.take(rows, MOSTLY_KNOWN))] as const,
    [`floor ${rows}`, () => timeFloor(stack, bodies.take(rows, MOSTLY_KNOWN))] as const,
  ]);
  const turns = await inTurns(SERIES_ROUNDS, Object.fromEntries(names));
  const line = (who: string): [number, number][] =>
    BATCH_SIZES.map((rows) => [rows, perSecond(turns[`${who} ${rows}`]!, rows)]);
  return {
    title: 'Masking throughput by batch size',
    x: 'rows per batch',
    y: 'rows/s',
    logarithmic: true,
    lines: { mask_batch: line('ours'), 'floor (no masking)': line('floor') },
  };
}

const perSecond = (took: number[], rows: number): number => (rows * 1_000) / median(took);
const microseconds = (took: number[]): number => (median(took) * 1_000) / ROWS;
