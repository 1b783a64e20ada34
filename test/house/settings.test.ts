import { describe, expect, test } from 'vitest';
import { readSettings, SPECS } from '../../src/config.ts';
import { SettingError } from '../../src/errors.ts';
import { read } from './files.ts';

/** The defaults in README's table of settings, by name. */
const TABLE = new Map(
  [...read('README.md').matchAll(/^\| `([A-Z0-9_]+)` \| ([^|]+) \|/gm)].map((match) => [
    match[1]!,
    match[2]!.trim(),
  ]),
);
const NUMBERS = Object.entries(SPECS).filter(([, spec]) => typeof spec.default === 'number');

function messageFor(environment: Record<string, string>): string {
  try {
    readSettings({ ...environment });
    return 'none';
  } catch (error) {
    if (error instanceof SettingError) return error.message;
    throw error;
  }
}

test('README lists every setting with its default, and no others', () => {
  const names = Object.keys(SPECS);
  expect(names.filter((name) => !TABLE.has(name))).toEqual([]);
  expect([...TABLE.keys()].filter((name) => name !== 'AWS_REGION' && !names.includes(name))).toEqual([]);
  const wrong = Object.entries(SPECS).filter(([name, spec]) => {
    const written = TABLE.get(name)!.replaceAll(/[`,_]/g, '');
    return spec.default === undefined
      ? /^\d/.test(written)
      : written !== String(spec.default).replaceAll('_', '');
  });
  expect(wrong.map(([name]) => `${name}: ${TABLE.get(name)}`)).toEqual([]);
});

describe.each(NUMBERS)('%s', (name) => {
  test.each(['0', '-1', '1.5', '99999999999', 'secret-x7', '1e400', 'NaN', '5 5'])(
    'refuses %j with an error that names the variable and does not quote the value',
    (value) => {
      const message = messageFor({ [name]: value });
      expect(message).toContain(name);
      expect(/secret|1e400|99999999999|NaN/.test(message)).toBe(false);
    },
  );

  test('accepts its default, and takes an empty value as not set', () => {
    expect(messageFor({ [name]: String(SPECS[name as keyof typeof SPECS].default) })).toBe('none');
    expect(messageFor({ [name]: '' })).toBe('none');
  });
});

test.each([
  ['DATABASE_URL', 'mysql://user:hunter2@host/db'],
  ['DATABASE_URL', 'hunter2'],
  ['SQS_QUEUE_URL', 'postgres://hunter2@host'],
  ['AWS_ENDPOINT_URL_SQS', 'hunter2'],
])('the error for an invalid %s names it and does not quote its value', (name, value) => {
  const message = messageFor({ [name]: value });
  expect(message).toContain(name);
  expect(message).not.toContain('hunter2');
});

test('the error for an invalid LOG_LEVEL lists the levels and does not quote the value', () => {
  const message = messageFor({ LOG_LEVEL: 'hunter2' });
  expect(message).not.toContain('hunter2');
  for (const word of ['LOG_LEVEL', 'fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'])
    expect(message).toContain(word);
});

test.each([
  ['10', '20'],
  ['10', '9'],
  ['1', '2'],
])(
  'with a grace period of %s s, a wait time of %s s is refused, because polls could not end in time',
  (grace, wait) => {
    const given = messageFor({ SHUTDOWN_GRACE_SECONDS: grace, SQS_WAIT_TIME_SECONDS: wait });
    for (const name of ['SHUTDOWN_GRACE_SECONDS', 'SQS_WAIT_TIME_SECONDS']) expect(given).toContain(name);
  },
);

test.each([
  ['30', '20'],
  ['10', '8'],
  ['1', '1'],
])('with a grace period of %s s, a wait time of %s s is accepted', (grace, wait) => {
  expect(messageFor({ SHUTDOWN_GRACE_SECONDS: grace, SQS_WAIT_TIME_SECONDS: wait })).toBe('none');
});

test.each([
  ['1', 1],
  ['3', 1],
  ['10', 8],
  ['22', 20],
  ['3600', 20],
])('with a grace period of %s s, the default wait time is %i s', (SHUTDOWN_GRACE_SECONDS, wait) => {
  const settings = readSettings({ SHUTDOWN_GRACE_SECONDS });
  expect(settings.waitTimeSeconds).toBe(wait);
});

test('the error names every invalid variable, not only the first', () => {
  const message = messageFor({ LOAD_BATCH_ROWS: 'x', LOG_LEVEL: 'x', SQS_WAIT_TIME_SECONDS: '21' });
  for (const name of ['LOAD_BATCH_ROWS', 'LOG_LEVEL', 'SQS_WAIT_TIME_SECONDS'])
    expect(message).toContain(name);
});

test('MASKING_KEK and MASKING_KEK_FILE together are refused', () => {
  const message = messageFor({ MASKING_KEK: 'hunter2', MASKING_KEK_FILE: '/secret' });
  expect(message).toContain('MASKING_KEK_FILE');
  expect(message).not.toContain('hunter2');
});
