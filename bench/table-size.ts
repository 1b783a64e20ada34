import { masked, plain } from './batches.ts';
import { fill, runSql, withBenchStack, type BenchStack } from './bench-stack.ts';
import { inTurns, median, medianRatio, type Result } from './benchmark.ts';
import { Bodies } from './bodies.ts';

const ROWS = 2_000;
const ROUNDS = 11;
/** Logins in place; the vault has half as many entries. */
const SIZES = [100_000, 1_000_000, 10_000_000];
/** Of a batch that is mostly known, the share of values that the vault does not have yet. */
const MOSTLY_KNOWN = 0.02;

/**
 * `mask_batch` with much in place, against the same with nothing in place; and the floor with as much in place, which
 * tells how much of the difference is the price of large indexes rather than of masking. Every value is new, as none
 * can be known where nothing is in place; values that are mostly known are measured beside it.
 */
export function tableSize(): Promise<Result> {
  return withBenchStack((empty) => withBenchStack((filled) => compare(empty, filled)));
}

async function compare(empty: BenchStack, filled: BenchStack): Promise<Result> {
  const bodies = new Bodies();
  for (const stack of [empty, filled]) await runSql(stack, 'floor.sql');
  await runSql(filled, 'fill.sql');
  const all = bodies.all();
  for (let from = 0; from < all.length; from += ROWS) await masked(filled, all.slice(from, from + ROWS));
  const lines: Record<'filled' | 'known' | 'empty' | 'floor' | 'emptyFloor', [size: number, rate: number][]> =
    {
      filled: [],
      known: [],
      empty: [],
      floor: [],
      emptyFloor: [],
    };
  let ours = Number.NaN;
  let floors = Number.NaN;
  let known = Number.NaN;
  let inPlace = 0;
  for (const size of SIZES) {
    await fill(filled, size - inPlace, (size - inPlace) / 2);
    await filled.superuser.query('truncate bench.plain_logins; select bench.fill_plain()');
    inPlace = size;
    const turns = await inTurns(ROUNDS, {
      empty: async () => {
        await empty.superuser.query('truncate public.user_logins, masking.vault');
        return masked(empty, bodies.take(ROWS, 1));
      },
      filled: () => masked(filled, bodies.take(ROWS, 1)),
      known: () => masked(filled, bodies.take(ROWS, MOSTLY_KNOWN)),
      emptyFloor: async () => {
        await empty.superuser.query('truncate bench.plain_logins');
        return plain(empty, bodies.take(ROWS, 1));
      },
      floor: () => plain(filled, bodies.take(ROWS, 1)),
    });
    for (const name of Object.keys(lines) as (keyof typeof lines)[]) {
      lines[name].push([size, (ROWS * 1_000) / median(turns[name])]);
    }
    ours = medianRatio(turns.empty, turns.filled);
    floors = medianRatio(turns.emptyFloor, turns.floor);
    known = medianRatio(turns.floor, turns.known);
  }
  return {
    how: `batches of ${ROWS} rows on one connection, every value new, ${ROUNDS} rounds at each size`,
    postgres: filled.version,
    targets: [
      {
        measure:
          'h: mask_batch, 10 million logins and 5 million entries of the vault in place ÷ none (rows/s)',
        value: ours,
        atLeast: 0.8,
      },
    ],
    figures: {
      'the floor, 10 million logins in place ÷ none (rows/s)': floors,
      'mask_batch, 2% of the values new ÷ floor, 10 million logins in place (rows/s)': known,
      'mask_batch, 10 million logins in place (rows/s)': lines.filled.at(-1)![1],
      'mask_batch, none in place (rows/s)': lines.empty.at(-1)![1],
    },
    series: [
      {
        title: 'Masking by table size',
        x: 'logins in place',
        y: 'rows/s',
        logarithmic: true,
        lines: {
          mask_batch: lines.filled,
          'mask_batch, 2% new': lines.known,
          'mask_batch, none in place': lines.empty,
          'floor (no masking)': lines.floor,
          'floor, none in place': lines.emptyFloor,
        },
      },
    ],
  };
}
