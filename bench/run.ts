/**
 * `npm run bench`: runs the named benchmarks, or all, each with a stack of its own. Prints the results, and writes them
 * to `bench/results/NAME.json`. docs/performance.md explains them.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import Table from 'cli-table3';
import { commandLine, runCommand } from '../src/cli/command.ts';
import { SettingError } from '../src/errors.ts';
import { CORES, isMet, targetText, rounded, type Benchmark, type Result } from './benchmark.ts';
import { endToEnd } from './end-to-end.ts';
import { latency } from './latency.ts';
import { masking } from './masking.ts';
import { memory } from './memory.ts';
import { reveal } from './reveal.ts';
import { tableSize } from './table-size.ts';
import { workers } from './workers.ts';

const BENCHMARKS: Record<string, Benchmark> = {
  masking,
  workers,
  'table-size': tableSize,
  'end-to-end': endToEnd,
  memory,
  latency,
  reveal,
};
const NAMES = Object.keys(BENCHMARKS);

const RESULTS = path.join(import.meta.dirname, 'results');

await runCommand(async () => {
  const { args } = commandLine(
    'bench',
    'Compares masking with the minimum possible work and with common alternatives',
  )
    .argument('[names...]', `benchmarks to run: ${NAMES.join(', ')} (default: all)`)
    .parse();
  const unknown = args.find((name) => !NAMES.includes(name));
  if (unknown !== undefined)
    throw new SettingError(`unknown benchmark ${unknown}: choose from ${NAMES.join(', ')}`);

  let areMet = true;
  for (const name of args.length > 0 ? args : NAMES) {
    process.stdout.write(`${name}:\n`);
    const result = await BENCHMARKS[name]!();
    write(name, result);
    print(result);
    areMet &&= result.targets.every(isMet);
  }
  return areMet ? 0 : 1;
});

function write(name: string, { postgres, ...result }: Result): void {
  mkdirSync(RESULTS, { recursive: true });
  const machine = { node: process.version, postgres, cores: CORES };
  const json = JSON.stringify({ benchmark: name, ...machine, ...result }, round, 2);
  writeFileSync(path.join(RESULTS, `${name}.json`), `${json}\n`);
}

function round(_key: string, value: unknown): unknown {
  return typeof value === 'number' ? rounded(value) : value;
}

function print({ how, figures, targets }: Result): void {
  const table = new Table({ head: ['measure', 'result', 'target'], style: { head: [], border: [] } });
  for (const target of targets) {
    const { measure, value } = target;
    table.push([measure, rounded(value), `${targetText(target)}: ${isMet(target) ? 'met' : 'NOT MET'}`]);
  }
  for (const [figure, value] of Object.entries(figures)) table.push([figure, rounded(value), '']);
  process.stdout.write(`${how}\n${table.toString()}\n\n`);
}
