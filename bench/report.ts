/** `npm run bench:report`: writes `bench/results/*.json` into docs/performance.md, as tables and plots. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { commandLine } from '../src/cli/command.ts';
import { isMet, targetText, type Result, type Target } from './benchmark.ts';
import { plot } from './plots.ts';

const ROOT = path.join(import.meta.dirname, '..');
const PAGE = path.join(ROOT, 'docs/performance.md');
const BEGIN = '<!-- results of NAME -->';
const END = '<!-- end of results -->';

type Stored = Result & { benchmark: string; node: string; cores: number };

commandLine('bench:report', 'Writes the results of the benchmarks into docs/performance.md').parse();

let page = readFileSync(PAGE, 'utf8');
const names = [...page.matchAll(new RegExp(BEGIN.replace('NAME', '(.+)'), 'g'))].map(([, name]) => name!);
for (const name of names) {
  const stored = JSON.parse(readFileSync(path.join(ROOT, 'bench/results', `${name}.json`), 'utf8')) as Stored;
  const begin = BEGIN.replace('NAME', name);
  const from = page.indexOf(begin) + begin.length;
  const to = page.indexOf(END, from);
  page = `${page.slice(0, from)}\n\n${section(stored)}\n${page.slice(to)}`;
}
writeFileSync(PAGE, page);

function section({ how, node, postgres, cores, targets, figures, series = [] }: Stored): string {
  const rows = [
    ...targets.map((target) => [target.measure, target.value, verdict(target)]),
    ...Object.entries(figures).map(([figure, value]) => [figure, value, '']),
  ];
  const plots = series.map((each) => {
    const file = `${each.title.toLowerCase().replaceAll(/[^a-z0-9]+/g, '-')}.svg`;
    mkdirSync(path.join(ROOT, 'docs/plots'), { recursive: true });
    writeFileSync(path.join(ROOT, 'docs/plots', file), plot(each));
    return `![${each.title}](plots/${file})\n`;
  });
  return [
    `${how}.\nPostgres ${postgres}, Node ${node}, ${cores} cores.\n`,
    '| measure | result | target |\n|---|---|---|',
    ...rows.map((row) => `| ${row.join(' | ')} |`),
    '',
    ...plots,
  ].join('\n');
}

function verdict(target: Target): string {
  const text = targetText(target);
  return isMet(target) ? `${text}: met` : `**${text}: not met**`;
}
