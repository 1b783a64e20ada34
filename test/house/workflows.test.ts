import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { filesOf, read } from './files.ts';

const ROOT = path.join(import.meta.dirname, '../..');

interface Job {
  needs?: string | string[];
  permissions?: Record<string, string>;
  'timeout-minutes'?: number;
  steps: { uses?: string; run?: string; with?: Record<string, unknown> }[];
}

interface Workflow {
  on: Record<string, { branches?: string[]; tags?: string[] } | null>;
  permissions: Record<string, string>;
  jobs: Record<string, Job>;
}

const WORKFLOWS = filesOf('.github/workflows', '.yml').map(
  ({ name, text }) => [path.basename(name), parse(text) as Workflow] as const,
);
const release = new Map(WORKFLOWS).get('release.yml')!;
const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> };

/** The jobs that must have ended well before one begins. */
function needsOf(jobs: Workflow['jobs'], name: string): string[] {
  const needs = [jobs[name]!.needs ?? []].flat();
  return [...needs, ...needs.flatMap((each) => needsOf(jobs, each))];
}

test('there is a workflow for checks and one for releases', () => {
  expect(WORKFLOWS.map(([name]) => name)).toEqual(['ci.yml', 'release.yml']);
});

describe.each(WORKFLOWS)('%s', (_, workflow) => {
  const jobs = Object.entries(workflow.jobs);
  const steps = jobs.flatMap(([, job]) => job.steps);
  const runs = steps.flatMap(({ run }) => (run === undefined ? [] : [run]));

  test('uses actions of a major version', () => {
    const used = steps.flatMap(({ uses }) => (uses === undefined ? [] : [uses]));
    expect(used).toContain('actions/checkout@v4');
    expect(used.filter((each) => !/^[\w-]+\/[\w-]+@v\d+$/.test(each))).toEqual([]);
  });

  test('limits the time of each job, and waits only for jobs that are there', () => {
    expect(jobs.filter(([, job]) => job['timeout-minutes'] === undefined).map(([name]) => name)).toEqual([]);
    const needs = jobs.flatMap(([name]) => needsOf(workflow.jobs, name));
    expect(needs.filter((name) => !(name in workflow.jobs))).toEqual([]);
  });

  test('runs what bash can read, and puts no expression into it that others could write', () => {
    for (const run of runs) {
      expect(spawnSync('bash', ['-n'], { input: run, encoding: 'utf8' }).stderr).toBe('');
      expect(run).not.toContain('${{');
    }
  });

  test('runs scripts and files that are there', () => {
    const text = runs.join('\n');
    const npm = [...text.matchAll(/\bnpm run (\S+)/g)].map((match) => match[1]!.replace(/\)$/, ''));
    expect(npm.filter((name) => !(name in scripts))).toEqual([]);
    const files = [...text.matchAll(/bash (\.ci\/\S+?)\)?(?=\s|$)|--file=(\S+\.sql)/g)];
    const named = files.map((match) => match[1] ?? match[2]!);
    expect(named).toContain('.ci/run');
    expect(named.filter((name) => !existsSync(path.join(ROOT, name)))).toEqual([]);
  });

  test('keeps released migrations as they are, with all tags at hand', () => {
    const guards = jobs.filter(([, job]) =>
      job.steps.some(({ run }) => run?.includes('.ci/frozen-migrations')),
    );
    expect(guards).toHaveLength(1);
    const checkout = guards[0]![1].steps.find(({ uses }) => uses?.startsWith('actions/checkout@'));
    expect(checkout?.with?.['fetch-depth']).toBe(0);
  });
});

test('only what publishes may write, each job one thing, and no job may write that runs code of dependencies', () => {
  const writers = WORKFLOWS.flatMap(([file, { permissions, jobs }]) =>
    Object.entries(jobs).flatMap(([job, own]) =>
      Object.entries(own.permissions ?? permissions)
        .filter(([, access]) => access !== 'read')
        .map(([scope, access]) => `${file} ${job}: ${scope} ${access}`),
    ),
  );
  expect(writers).toEqual([
    'release.yml image: packages write',
    'release.yml npm: id-token write',
    'release.yml release: contents write',
  ]);
  for (const job of ['image', 'npm', 'release']) {
    const installs = release.jobs[job]!.steps.filter(({ run }) =>
      /npm (ci|i|install|run|test)\b|\.ci\//.test(run ?? ''),
    );
    expect(installs).toEqual([]);
  }
});

test('a release is a tag, and publishes only after all checks', () => {
  expect(release.on).toEqual({ push: { tags: ['v*'] } });
  for (const job of ['image', 'npm', 'release']) expect(needsOf(release.jobs, job)).toContain('check');
  const checks = release.jobs['check']!.steps.map(({ run }) => run ?? '').join('\n');
  for (const each of ['.ci/release-notes', '.ci/frozen-migrations', '.ci/run', 'npm pack'])
    expect(checks).toContain(each);
});
