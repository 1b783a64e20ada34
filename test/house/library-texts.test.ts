/**
 * Libraries put values into the messages that they log. These tests check for each message that no value reaches our
 * log.
 */
import { globSync, readFileSync } from 'node:fs';
import path from 'node:path';
import pino from 'pino';
import { expect, test } from 'vitest';
import { libraryLogger, silenceConsole } from '../../src/database/library-logger.ts';

const MODULES = path.join(import.meta.dirname, '../../node_modules');
/** Expressions that may reach our log: numbers, and names that belong to the library. */
const HARMLESS = [
  /^(?:job\.id|delay|max|concurrency|localQueueSize|expectedTimestamp|latestMigration|highestMigration)\b/,
  /^(?:\(\(?expectedTimestamp|cancelledJobs\.length|jobsToRelease|forceFailedJobs|worker\.workerId|eventName)\b/,
  /^(?:breaking \?|migrationFile|signal|new Date|logSuffix|reason \?|remainingMigrations\.length)/,
];

interface Message {
  file: string;
  text: string;
}

/** The template strings that a package passes to its logger. */
function messagesOf(name: string): Message[] {
  return globSync(`${name}/dist/**/*.js`, { cwd: MODULES }).flatMap((file) => {
    const source = readFileSync(path.join(MODULES, file), 'utf8');
    return [...source.matchAll(/ogger(?:\.\w+|\[[^\]]+\])\(\s*`((?:[^`\\]|\\.)*)`/g)].map(([, text]) => ({
      file: path.basename(file),
      text: text!,
    }));
  });
}

const MESSAGES = ['graphile-worker', 'graphile-migrate'].flatMap(messagesOf);

/** The line in our log for a message of a library. */
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

test('messages of the libraries are found', () => {
  expect(MESSAGES.length).toBeGreaterThan(50);
});

test.each(MESSAGES)('the log contains no value from $file: $text', ({ text }) => {
  const filled = text
    .replaceAll('${inspect(', '{ ${(')
    .replaceAll(/\$\{([^}]*)(?:\}|$)/g, (_, expression: string) =>
      HARMLESS.some((harmless) => harmless.test(expression.trim())) ? '1' : 'canary',
    )
    .replaceAll('\\n', '\n');
  expect(logged(filled)).not.toContain('canary');
});

test('an attached error is logged by its code only', () => {
  const error = Object.assign(new Error('canary'), { code: '23505', detail: 'canary' });
  const line = logged('Failed to do it: canary', { error });
  expect(line).toContain('SQLSTATE 23505');
  expect(line).not.toContain('canary');
});

test('the log says that a library wrote to the console, but not what', () => {
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
