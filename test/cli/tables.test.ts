import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { columnsOf } from '../../src/config.ts';
import {
  renderKeys,
  renderStatus,
  type ListedKey,
  type RotationProgress,
  type Status,
} from '../../src/status.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { REGION, startQueue, type TestQueue } from '../load/loader.ts';
import { HAS_TERMINAL, maskedLogins, onTerminal } from './shipped.ts';

const AT = new Date('2026-03-14T09:26:53.589Z');
const ROTATION: RotationProgress = {
  purpose: 'cipher',
  field: 'device_id',
  from: 41,
  to: 42,
  state: 'paused',
  phase: 'quarantine',
  rows: 123_456_789,
  total: 987_654_321,
  percent: 12,
  seconds_left: 86_400,
  problem: 'paused because a value does not match its token (ML004); see docs/incidents.md',
};
/** Everything there can be at once, as long as it gets. */
const KEYS: ListedKey[] = (['active', 'retiring', 'destroyed'] as const).flatMap((state, index) =>
  (['ip', 'device_id', 'body'] as const).map((field) => ({
    purpose: 'cipher',
    field,
    version: 40 + index,
    state,
    created_at: AT,
    retiring_at: null,
    destroyed_at: null,
  })),
);
const STATUS: Status = {
  queue: { visible: 12_345_678, inFlight: 119_999, deadLettered: 12_345 },
  staged: { rows: 100_000, oldestUnmaskedSeconds: 123_456.7 },
  batches: { total: 123_456_789, pending: 123_456, lost: 12 },
  loaded: 123_456_789_012,
  duplicates: 123_456_789,
  noAddresses: 123_456_789,
  quarantined: { total: 123_456_789, now: 123_456 },
  sealed: true,
  keys: KEYS,
  rotations: [ROTATION, ROTATION],
  erasures: [{ erasure_id: 123_456, phase: 'quarantine', logins: 123_456 }],
  residue: {
    bodies: 100_000,
    oldestSeconds: 123_456,
    slotSeconds: 123_456,
    heldBy: [1234567, 1234568, 1234569],
  },
};
const TABLES = [
  ['status', (columns?: number) => renderStatus(STATUS, columns)],
  ['keys list', (columns?: number) => renderKeys(KEYS, [ROTATION], columns)],
] as const;

const at = (line: string, characters: RegExp) => [...line.matchAll(characters)].map((match) => match.index);
const isOfTable = (line: string) => /^[┌├└│]/.test(line);

/** No line is wider than it may be, and each border continues from the first line of the table to its last. */
function expectUnbroken(lines: string[], columns: number): void {
  expect(lines.filter((line) => line.length > columns)).toEqual([]);
  const table = lines.filter(isOfTable);
  expect(table.length).toBeGreaterThan(3);
  const borders = at(table[0]!, /[┌┬┐]/g);
  for (const line of table) {
    expect(line).toHaveLength(table[0]!.length);
    expect(at(line, /[┌┬┐├┼┤└┴┘│]/g)).toEqual(borders);
  }
  expect([table[0]![0], table.at(-1)![0]]).toEqual(['┌', '└']);
}

/** What is in the cells, in any order, without the borders. */
const wordsOf = (text: string) =>
  text
    .split(/[\s─│┌┬┐├┼┤└┴┘]+/)
    .filter((word) => word !== '')
    .sort();

describe.each(TABLES)('the table of %s', (_, render) => {
  test.each([60, 72, 80, 120])('is unbroken in %i columns', (columns) => {
    expectUnbroken(render(columns).split('\n'), columns);
  });

  test.each([72, 80, 120])('says in %i columns the same as without a limit', (columns) => {
    expect(wordsOf(render(columns))).toEqual(wordsOf(render()));
  });

  test('is as without a limit where it fits', () => {
    expect(render(1_000)).toBe(render());
  });

  test('is still a table where nothing can fit', () => {
    expectUnbroken(render(10).split('\n').filter(isOfTable), 80);
  });
});

test('in 60 columns, keys list has dates to the second, and cuts nothing off', () => {
  const words = wordsOf(renderKeys(KEYS, [ROTATION], 60));
  expect(words).toEqual(expect.arrayContaining(['2026-03-14', '09:26:53Z', 'device_id', 'destroyed']));
  expect(words.join(' ')).not.toMatch(/…|T09/);
  expect(renderStatus(STATUS, 60)).not.toContain('…');
});

test.each([
  [{ columns: 60 }, '200', 60],
  [{}, '80', 80],
  [{ columns: 0 }, '80', 80],
  [{}, undefined, undefined],
  [{}, 'wide', undefined],
  [{}, '0', undefined],
])('output to %j with COLUMNS=%s may be %s columns wide', (stream, COLUMNS, columns) => {
  expect(columnsOf(stream, COLUMNS === undefined ? {} : { COLUMNS })).toBe(columns);
});

describe('the commands', () => {
  let db: TestDatabase;
  let sqs: TestQueue;
  let variables: (login: 'auditor' | 'custodian') => Record<string, string>;
  beforeAll(async () => {
    [db, sqs] = await Promise.all([createTestDatabase(), startQueue()]);
    await db.pool('custodian').query(`select masking.rotate(purpose => 'cipher')`);
    variables = (login) => ({
      DATABASE_URL: db.urls[login],
      SQS_QUEUE_URL: sqs.queue.url,
      AWS_ENDPOINT_URL_SQS: sqs.queue.endpoint!,
      AWS_REGION: REGION,
      AWS_ACCESS_KEY_ID: 'test',
      AWS_SECRET_ACCESS_KEY: 'test',
    });
  });
  afterAll(() => Promise.all([db.drop(), sqs.stop()]));

  test.skipIf(!HAS_TERMINAL).each([
    ['status', 60],
    ['status', 80],
    ['keys list', 60],
    ['keys list', 80],
  ])('%s prints an unbroken table on a terminal of %i columns', async (line, columns) => {
    const login = line === 'status' ? 'auditor' : 'custodian';
    const lines = await onTerminal(columns, line.split(' '), variables(login));
    expectUnbroken(lines, columns);
    expect(lines.join('\n')).not.toContain('…');
  });

  test.each([
    ['status', 'auditor'],
    ['keys list', 'custodian'],
  ] as const)('%s fits what watch(1) says, and wraps nothing in a pipe', async (line, login) => {
    const { stdout } = await maskedLogins(line.split(' '), { ...variables(login), COLUMNS: '60' });
    expectUnbroken(stdout.trimEnd().split('\n'), 60);
    const piped = await maskedLogins(line.split(' '), variables(login));
    const widest = Math.max(...piped.stdout.split('\n').map((each) => each.length));
    expect(widest).toBeGreaterThan(60);
    expectUnbroken(piped.stdout.trimEnd().split('\n'), widest);
  });
});
