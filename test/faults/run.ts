/**
 * `npm run test:faults`: runs the pipeline under faults and accounts for every message (docs/reliability.md).
 */
import { writeFileSync } from 'node:fs';
import { InvalidArgumentError } from 'commander';
import { commandLine } from '../../src/cli/command.ts';
import { leaveNow, stopSignal } from '../../src/cli/signals.ts';
import { MUTATIONS, mutated } from '../support/faults/mutations.ts';
import { runSeed, type SeedOptions, type SeedReport } from '../support/faults/run-seed.ts';
import { ALL_STEPS, longSchedule } from '../support/faults/schedule.ts';

const DEFAULT_SEEDS = 3;
const SHORT_MESSAGES = 1_500;
const LONG_MESSAGES = 200_000;
/** How often a long run injects each fault. A round has about 40 faults. */
const LONG_ROUNDS = 10;

interface Options {
  seed: number[];
  seeds?: number;
  messages?: number;
  long: boolean;
  rounds: number;
  jobs: number;
  json?: string;
  mutation?: string;
  verbose: boolean;
}

const positiveInteger = (text: string): number => {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 1)
    throw new InvalidArgumentError('It must be a positive integer.');
  return value;
};

const options = commandLine('test:faults', 'Runs the pipeline under faults and accounts for every message')
  .option(
    '--seed <n>',
    'run the schedule of this seed; may be repeated',
    (text, seeds: number[]) => [...seeds, positiveInteger(text)],
    [],
  )
  .option('--seeds <count>', 'run the seeds from 1 to this number', positiveInteger)
  .option('--messages <n>', 'messages per run, in addition to those that the faults send', positiveInteger)
  .option('--long', 'one run with every fault, several times', false)
  .option('--rounds <n>', 'how often a long run injects each fault', positiveInteger, LONG_ROUNDS)
  .option('--jobs <n>', 'number of parallel runs', positiveInteger, 2)
  .option('--json <file>', 'write a report to this file')
  .option('--mutation <name>', `run with a known defect: ${Object.keys(MUTATIONS).join(', ')}`)
  .option('--verbose', 'report each fault when it begins', false)
  .parse()
  .opts<Options>();

const seeds =
  options.seed.length > 0
    ? options.seed
    : Array.from({ length: options.seeds ?? (options.long ? 1 : DEFAULT_SEEDS) }, (_, index) => index + 1);
const messages = options.messages ?? (options.long ? LONG_MESSAGES : SHORT_MESSAGES);

// Servers and processes end with this one if it ends by `exit`.
stopSignal({ onStop: leaveNow });

const reports: SeedReport[] = [];
const left = [...seeds];
async function lane(): Promise<void> {
  for (let seed = left.shift(); seed !== undefined; seed = left.shift()) {
    const report = await runSeed(optionsOf(seed));
    reports.push(report);
    process.stdout.write(`${verdict(report)}\n`);
    if (options.json !== undefined) writeFileSync(options.json, JSON.stringify(summary(), null, 2));
  }
}

function optionsOf(seed: number): SeedOptions {
  const plain: SeedOptions = {
    seed,
    messages,
    ...(options.long && { schedule: longSchedule(seed, options.rounds) }),
    ...(options.verbose && { onStep: (name: string) => process.stderr.write(`seed ${seed}: ${name}\n`) }),
  };
  return options.mutation === undefined ? plain : mutated(options.mutation, plain);
}

function verdict({ seed, ok, failures, counts, hits, recoveries, seconds }: SeedReport): string {
  const faults = Object.values(hits).reduce((sum, count) => sum + count, 0);
  const slowest = Math.max(
    0,
    ...recoveries.map(({ progressMs, backlogMs }) => Math.max(progressMs, backlogMs ?? 0)),
  );
  const account =
    counts === null
      ? ''
      : `${counts.sent} sent = ${counts.loaded} loaded + ${counts.quarantined} quarantined, `;
  const details = `${account}${faults} faults of ${Object.keys(hits).length} kinds, slowest recovery ${(slowest / 1_000).toFixed(1)} s, ${seconds} s`;
  return ok ? `seed ${seed}: ok, ${details}` : `seed ${seed}: FAILED (${failures.join('; ')}), ${details}`;
}

function summary() {
  const hits: Record<string, number> = {};
  for (const report of reports) {
    for (const [kind, count] of Object.entries(report.hits)) hits[kind] = (hits[kind] ?? 0) + count;
  }
  return {
    command: `npm run test:faults -- ${process.argv.slice(2).join(' ')}`.trim(),
    ok: reports.every(({ ok }) => ok),
    hits: Object.fromEntries(Object.entries(hits).sort()),
    faultsInAll: ALL_STEPS.length,
    reports: reports.toSorted((a, b) => a.seed - b.seed),
  };
}

await Promise.all(Array.from({ length: Math.min(options.jobs, seeds.length) }, lane));
process.exitCode = reports.every(({ ok }) => ok) ? 0 : 1;
