import { timeMasking, ROWS } from './batches.ts';
import { clear, fill, runSql, withBenchStack } from './bench-stack.ts';
import { inTurns, median, medianRatio, type Result } from './benchmark.ts';
import { Bodies } from './bodies.ts';

const ROUNDS = 25;
/** The numbers of logins in the table. The vault has half as many entries. */
const SIZES = [100_000, 1_000_000, 10_000_000];

/**
 * Compares `mask_batch` with large tables and with empty tables. All values are new, because empty tables know none.
 */
export function tableSize(): Promise<Result> {
  return withBenchStack((empty) =>
    withBenchStack(async (full) => {
      const bodies = new Bodies();
      await runSql(full, 'fill.sql');
      let filled = 0;
      const lines: Record<'filled' | 'empty', [number, number][]> = { filled: [], empty: [] };
      const ratios: [number, number][] = [];
      for (const size of SIZES) {
        await fill(full, size - filled, (size - filled) / 2);
        filled = size;
        const turns = await inTurns(ROUNDS, {
          empty: async () => {
            await clear(empty);
            return timeMasking(empty, bodies.take(ROWS, 1));
          },
          filled: () => timeMasking(full, bodies.take(ROWS, 1)),
        });
        for (const [name, took] of Object.entries(turns)) {
          lines[name as 'filled' | 'empty'].push([size, (ROWS * 1_000) / median(took)]);
        }
        ratios.push([size, medianRatio(turns.empty, turns.filled)]);
      }
      return {
        how: `Batches of ${ROWS} rows on one connection, all values new, ${ROUNDS} rounds at each size`,
        postgres: full.version,
        targets: [
          {
            measure: 'h: 10 million logins and 5 million vault entries ÷ empty tables (rows/s)',
            value: ratios.at(-1)![1],
            atLeast: 0.8,
          },
        ],
        figures: Object.fromEntries(
          ratios.map(([size, ratio]) => [`${size} logins ÷ empty tables (rows/s)`, ratio]),
        ),
        series: [
          {
            title: 'Masking throughput by table size',
            x: 'logins in the table',
            y: 'rows/s',
            logarithmic: true,
            lines: { mask_batch: lines.filled, 'mask_batch, empty tables': lines.empty },
          },
        ],
      };
    }),
  );
}
