import { readFileSync } from 'node:fs';
import path from 'node:path';
import { stageBatch } from '../src/load/stage.ts';
import { batchOf, withBenchStack, type BenchStack } from './bench-stack.ts';
import { inTurns, median, medianRatio, timed, type Result } from './benchmark.ts';
import { Bodies } from './bodies.ts';

/** A full batch of the loader's. */
const ROWS = 2_000;
const ROUNDS = 15;
/** Of a batch that is mostly known, the values that the vault does not have yet. */
const MOSTLY_KNOWN = 0.05;
const SHARES = [0, 0.02, 0.05, 0.1, 0.25, 0.5, 1];
const SERIES_ROUNDS = 5;

/** `mask_batch` on one connection, against the floor: the same staged rows parsed and inserted, and nothing masked. */
export function masking(): Promise<Result> {
  return withBenchStack(async (stack) => {
    await stack.superuser.query(readFileSync(path.join(import.meta.dirname, 'floor.sql'), 'utf8'));
    const bodies = new Bodies();
    await warm(stack, bodies);
    const floor = () => plain(stack, bodies.take(ROWS, MOSTLY_KNOWN));
    const known = () => masked(stack, bodies.take(ROWS, MOSTLY_KNOWN));
    const fresh = () => masked(stack, bodies.take(ROWS, 1));
    const turns = await inTurns(ROUNDS, { floor, known, fresh });
    const { rows } = await stack.superuser.query<{ ours: string }>('select masking.cipher_options() as ours');
    const defaults = await inTurns(SERIES_ROUNDS, {
      ours: fresh,
      theirs: async () => {
        await setCipherOptions(stack, '');
        const took = await fresh();
        await setCipherOptions(stack, rows[0]!.ours);
        return took;
      },
    });
    const byShare = await inTurns(
      SERIES_ROUNDS,
      Object.fromEntries(
        SHARES.map((share) => [String(share), () => masked(stack, bodies.take(ROWS, share))]),
      ),
    );
    return {
      how: `batches of ${ROWS} rows, ${ROUNDS} rounds, one connection`,
      postgres: stack.version,
      targets: [
        {
          measure: `a: mask_batch, ${MOSTLY_KNOWN * 100}% of the values new ÷ floor (rows/s)`,
          value: medianRatio(turns.floor, turns.known),
          atLeast: 0.7,
        },
        {
          measure: 'b: mask_batch, every value new ÷ floor (rows/s)',
          value: medianRatio(turns.floor, turns.fresh),
          atLeast: 0.35,
        },
        {
          measure: "g: ours ÷ pgcrypto's defaults, every value new (rows/s)",
          value: medianRatio(defaults.theirs, defaults.ours),
          atLeast: 8,
        },
      ],
      figures: {
        'floor (µs a row)': microseconds(turns.floor),
        'mask_batch, mostly known (µs a row)': microseconds(turns.known),
        'mask_batch, every value new (µs a row)': microseconds(turns.fresh),
        "pgcrypto's defaults, every value new (µs a row)": microseconds(defaults.theirs),
      },
      series: [
        {
          title: 'Masking by share of new values',
          x: 'values new to the vault (%)',
          y: 'rows/s',
          lines: { mask_batch: SHARES.map((share) => [share * 100, perSecond(byShare[String(share)]!)]) },
        },
      ],
    };
  });
}

/** Everything that is to be known later is. */
async function warm(stack: BenchStack, bodies: Bodies): Promise<void> {
  const all = bodies.all();
  for (let from = 0; from < all.length; from += ROWS) await masked(stack, all.slice(from, from + ROWS));
  await stack.superuser.query('vacuum analyze');
}

/** How long masking takes, receipts included, in milliseconds. */
export async function masked(stack: BenchStack, bodies: readonly string[]): Promise<number> {
  return moved(stack, bodies, (batchId) =>
    stack.worker.query('select receipt_handle from masking.mask_batch(batch_id => $1)', [batchId]),
  );
}

async function plain(stack: BenchStack, bodies: readonly string[]): Promise<number> {
  return moved(stack, bodies, (batchId) =>
    stack.superuser.query('select bench.load_plain(batch_id => $1)', [batchId]),
  );
}

/** Stages a batch, moves it on, and closes it; only the moving counts. */
async function moved(
  { loader, superuser }: BenchStack,
  bodies: readonly string[],
  move: (batchId: string) => Promise<unknown>,
): Promise<number> {
  const batch = batchOf(bodies);
  await stageBatch(loader, batch);
  const took = await timed(() => move(batch.id));
  await superuser.query('update staging.batches set acked_at = now() where batch_id = $1', [batch.id]);
  await superuser.query(`select staging.rotate_slots()`);
  return took;
}

async function setCipherOptions({ superuser }: BenchStack, options: string): Promise<void> {
  await superuser.query(
    `create or replace function masking.cipher_options() returns text language sql immutable parallel safe
       as $$ select '${options}' $$`,
  );
}

const perSecond = (took: number[], rows = ROWS): number => (rows * 1_000) / median(took);
const microseconds = (took: number[], rows = ROWS): number => (median(took) * 1_000) / rows;
