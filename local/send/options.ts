import { SettingError } from '../../src/errors.ts';

/** The options of `npm run send` as they were typed. */
export interface SendArguments {
  count?: string;
  rate?: string;
  duplicates?: string;
  malformed?: string;
  seed?: string;
  file?: string;
  json: boolean;
}

export interface CheckedSendArguments {
  count: number;
  rate: number | undefined;
  duplicates: number;
  malformed: number;
  seed: string | undefined;
  file: string | undefined;
  json: boolean;
}

/** Options of the generator, which do not apply to a file. */
const OF_GENERATOR = ['count', 'duplicates', 'malformed', 'seed'] as const;

/** @throws {SettingError} that names the option that is out of range or does not apply */
export function sendOptions(typed: SendArguments): CheckedSendArguments {
  if (typed.file !== undefined) {
    const misplaced = OF_GENERATOR.filter((name) => typed[name] !== undefined).map((name) => `--${name}`);
    if (misplaced.length > 0) {
      throw new SettingError(
        `${misplaced.join(', ')} cannot be used with --file, whose lines are sent unchanged`,
      );
    }
  }
  return {
    count: numberOf('--count', typed.count, 1_000, { low: 1, high: 100_000_000, whole: true }),
    rate:
      typed.rate === undefined
        ? undefined
        : numberOf('--rate', typed.rate, 1, { low: 0.01, high: 1_000_000 }),
    duplicates: numberOf('--duplicates', typed.duplicates, 0.2, { low: 0, high: 1 }),
    malformed: numberOf('--malformed', typed.malformed, 0.01, { low: 0, high: 1 }),
    seed: typed.seed,
    file: typed.file,
    json: typed.json,
  };
}

function numberOf(
  option: string,
  typed: string | undefined,
  preset: number,
  range: { low: number; high: number; whole?: boolean },
): number {
  if (typed === undefined) return preset;
  const value = typed.trim() === '' ? Number.NaN : Number(typed);
  if (value >= range.low && value <= range.high && (!range.whole || Number.isInteger(value))) return value;
  throw new SettingError(
    `${option} must be a ${range.whole ? 'whole ' : ''}number from ${range.low} to ${range.high}`,
  );
}
