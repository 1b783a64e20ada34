/**
 * `npm run bench -- NAME`: runs a benchmark against a stack of its own, prints its figures, and writes them to
 * `bench/results/NAME.json`.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import Table from 'cli-table3';
import { runCommand } from '../src/cli/command.ts';
import { SettingError } from '../src/errors.ts';
import type { Benchmark } from './benchmark.ts';
import { reveal } from './reveal.ts';

const BENCHMARKS: Record<string, Benchmark> = { reveal };

await runCommand(async () => {
  const name = process.argv[2] ?? '';
  const benchmark = BENCHMARKS[name];
  if (benchmark === undefined || process.argv.length > 3) {
    throw new SettingError(`name a benchmark: ${Object.keys(BENCHMARKS).join(', ')}`);
  }
  const { figures, accepted, postgres } = await benchmark();
  const table = new Table({ style: { head: [], border: [] } });
  table.push(...Object.entries(figures).map(([figure, value]) => [figure, value]));
  process.stdout.write(`${table.toString()}\n`);

  const directory = path.join(import.meta.dirname, 'results');
  mkdirSync(directory, { recursive: true });
  const result = { benchmark: name, node: process.version, postgres, accepted, figures };
  writeFileSync(path.join(directory, `${name}.json`), `${JSON.stringify(result, null, 2)}\n`);
  return accepted ? 0 : 1;
});
