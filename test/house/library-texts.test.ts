/** What libraries put into the texts that they log must not reach our log: each of these texts is tried. */
import { globSync, readFileSync } from 'node:fs';
import path from 'node:path';
import pino from 'pino';
import { expect, test } from 'vitest';
import { libraryLogger, silenceConsole } from '../../src/database/library-logger.ts';

const MODULES = path.join(import.meta.dirname, '../../node_modules');
/** What a text may put in before any bracket, quote or colon: numbers, and names of the library's own. */
const HARMLESS = [
  /^(?:job\.id|delay|max|concurrency|localQueueSize|expectedTimestamp|latestMigration|highestMigration)\b/,
  /^(?:\(\(?expectedTimestamp|cancelledJobs\.length|jobsToRelease|forceFailedJobs|worker\.workerId|eventName)\b/,
  /^(?:breaking \?|migrationFile|signal|new Date|logSuffix|reason \?|remainingMigrations\.length)/,
];

interface Text {
  place: string;
  text: string;
}

/** The template strings that a package hands to its logger. */
function textsOf(name: string): Text[] {
  return globSync(`${name}/dist/**/*.js`, { cwd: MODULES }).flatMap((file) => {
    const source = readFileSync(path.join(MODULES, file), 'utf8');
    return [...source.matchAll(/ogger(?:\.\w+|\[[^\]]+\])\(\s*`((?:[^`\\]|\\.)*)`/g)].map(([, text]) => ({
      place: path.basename(file),
      text: text!,
    }));
  });
}

const TEXTS = ['graphile-worker', 'graphile-migrate'].flatMap(textsOf);

/** What becomes of a text in our log. */
function logged(message: string, attached?: { error: unknown }): string {
  let line = '';
  const log = pino({ level: 'trace' }, { write: (text: string) => (line += text) });
  class Library {
    say: (level: string, message: string, attached?: { error: unknown }) => void;
    constructor(factory: () => Library['say']) {
      this.say = factory();
    }
  }
  libraryLogger(Library, log).say('error', message, attached);
  return line;
}

test('there are texts of both libraries to look at', () => {
  expect(TEXTS.length).toBeGreaterThan(50);
});

test.each(TEXTS)('$place: $text', ({ text }) => {
  const filled = text
    .replaceAll('${inspect(', '{ ${(')
    .replaceAll(/\$\{([^}]*)(?:\}|$)/g, (_, expression: string) =>
      HARMLESS.some((harmless) => harmless.test(expression.trim())) ? '1' : 'canary',
    )
    .replaceAll('\\n', '\n');
  expect(logged(filled)).not.toContain('canary');
});

test('an error that is attached is described by its code', () => {
  const error = Object.assign(new Error('canary'), { code: '23505', detail: 'canary' });
  const line = logged('Failed to do it: canary', { error });
  expect(line).toContain('SQLSTATE 23505');
  expect(line).not.toContain('canary');
});

test('what a library writes to the console is left out', () => {
  const methods = { ...console };
  let line = '';
  try {
    silenceConsole(pino({ level: 'trace' }, { write: (text: string) => (line += text) }));
    console.trace(new Error('canary'));
    console.error('canary');
  } finally {
    Object.assign(console, methods);
  }
  expect(line).not.toContain('canary');
  expect(line.trim().split('\n')).toHaveLength(2);
});
