import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';

const ROOT = path.join(import.meta.dirname, '../..');

/** A repository of its own, with the scripts of this one. */
let repository: string;
beforeEach(() => {
  repository = mkdtempSync(path.join(tmpdir(), 'masked-logins-release-'));
  cpSync(path.join(ROOT, '.ci'), path.join(repository, '.ci'), { recursive: true });
  git('init', '--quiet');
});
afterEach(() => rmSync(repository, { recursive: true, force: true }));

function git(...args: string[]): void {
  const identity = [
    '-c',
    'user.name=test',
    '-c',
    'user.email=test@example.com',
    '-c',
    'commit.gpgsign=false',
  ];
  execFileSync('git', [...identity, ...args], { cwd: repository });
}

/** A commit, with a tag if one is given. */
function commit(tag?: string): void {
  git('add', '--all');
  git('commit', '--quiet', '--allow-empty', '--message=a change');
  if (tag !== undefined) git('tag', tag);
}

function write(file: string, text: string): void {
  mkdirSync(path.dirname(path.join(repository, file)), { recursive: true });
  writeFileSync(path.join(repository, file), text);
}

const run = (script: string, ...args: string[]) =>
  spawnSync('bash', [`.ci/${script}`, ...args], { cwd: repository, encoding: 'utf8' });

describe('frozen-migrations', () => {
  const FIRST = 'migrations/committed/000001-first.sql';

  beforeEach(() => {
    write(FIRST, 'select 1;\n');
    commit('v0.9.0');
    write('migrations/committed/000002-second.sql', 'select 2;\n');
    commit('v0.10.0');
    commit();
  });

  test('passes while nothing is released', () => {
    git('tag', '--delete', 'v0.9.0', 'v0.10.0');
    expect(run('frozen-migrations').status).toBe(0);
  });

  test('passes with new migrations beside those that are released', () => {
    write('migrations/committed/000003-third.sql', 'select 3;\n');
    expect(run('frozen-migrations').status).toBe(0);
  });

  test.each([
    ['one that changed by a byte', () => write(FIRST, 'select 1;\r\n')],
    ['one that is gone', () => rmSync(path.join(repository, FIRST))],
    ['one that has another name', () => git('mv', FIRST, 'migrations/committed/000001-other.sql')],
    ['a directory that is gone', () => rmSync(path.join(repository, 'migrations'), { recursive: true })],
  ])('fails for %s', (_, change) => {
    change();
    const { status, stderr } = run('frozen-migrations');
    expect(status).toBe(1);
    expect(stderr).toContain(FIRST);
    // Committed, it is found as well.
    commit();
    expect(run('frozen-migrations').status).toBe(1);
  });

  test('compares a release with the one before it, by version and not by name', () => {
    write('migrations/committed/000002-second.sql', 'select 22;\n');
    commit('v0.11.0');
    const { status, stderr } = run('frozen-migrations');
    expect(status).toBe(1);
    expect(stderr).toContain('v0.10.0');
  });

  test('fails where the tags were not fetched', () => {
    const clone = path.join(repository, 'clone');
    execFileSync('git', ['clone', '--quiet', '--depth=1', `file://${repository}`, clone]);
    expect(spawnSync('bash', ['.ci/frozen-migrations'], { cwd: clone }).status).toBe(1);
  });
});

describe('release-notes', () => {
  const NOTES = '\n### Added\n\n- A thing.\n';
  beforeEach(() => {
    write('package.json', '{ "version": "0.2.0" }');
    write(
      'CHANGELOG.md',
      `# Changelog\n\n## [Unreleased]\n\nOther\n\n## [0.2.0] - 2026-03-14\n${NOTES}\n## [0.1.0] - 2026-01-01\n\nOlder\n`,
    );
  });

  test('prints the section of the version that the tag names', () => {
    const { status, stdout } = run('release-notes', 'v0.2.0');
    expect([status, stdout.trim()]).toEqual([0, NOTES.trim()]);
  });

  test.each(['v0.1.0', '0.2.0', 'v0.2.0-rc.1', ''])(
    'refuses the tag %j: package.json has another version',
    (tag) => {
      const { status, stdout } = run('release-notes', tag);
      expect([status === 0, stdout]).toEqual([false, '']);
    },
  );

  test.each([
    '',
    '## [0.2.0]',
    '## [0.2.0] - unreleased',
    '## [0X2.0] - 2026-03-14',
    '## [0.2.0] - 2026-3-14',
  ])('refuses a changelog with the heading %j', (heading) => {
    write('CHANGELOG.md', `# Changelog\n\n${heading}\n${NOTES}`);
    const { status, stdout } = run('release-notes', 'v0.2.0');
    expect([status, stdout]).toEqual([1, '']);
  });
});
