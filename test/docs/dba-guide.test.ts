import { randomUUID } from 'node:crypto';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';
import { read } from '../house/files.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { maskAll } from '../support/staging.ts';
import { createReader, LOGINS, type Reader } from './reader.ts';
import { stepsOf, type Step } from './sessions.ts';

const PAGES = ['docs/dba-guide.md', 'docs/incidents.md'];

/**
 * Drops the logins of the pages. They belong to the cluster: the first page creates them, the second page uses them.
 */
async function dropLogins(): Promise<void> {
  const superuser = new pg.Client({ connectionString: inject('superuserUrl') });
  await superuser.connect();
  await superuser.query(`drop role if exists ${LOGINS.join(', ')}`);
  await superuser.end();
}
beforeAll(dropLogins);
afterAll(dropLogins);

/** Loads the events that the guide tells the reader to send. */
async function loadLogins(db: TestDatabase): Promise<void> {
  const bodies = read('docs/guide-events.jsonl').trimEnd().split('\n');
  await maskAll(
    db,
    bodies.map((body) => ({ id: randomUUID(), body })),
  );
}

describe.each(PAGES)('%s', (page) => {
  let db: TestDatabase;
  let reader: Reader;
  beforeAll(async () => {
    db = await createTestDatabase();
    await loadLogins(db);
    reader = createReader(db);
  });
  afterAll(async () => {
    await reader.end();
    await db.drop();
  });

  const steps = stepsOf(read(page));

  test('contains sessions', () => {
    expect(steps.length).toBeGreaterThan(5);
  });

  // In the order of the page, because each step depends on those before.
  test.each(steps.map((step) => [step.line, nameOf(step), step] as const))(
    'line %i: %s',
    async (_line, _name, step) => {
      await expectAsWritten(step);
    },
  );
  const expectAsWritten = (step: Step): Promise<void> => reader.follow(step);
});

function nameOf(step: Step): string {
  if (step.kind === 'work') return 'a worker runs';
  return step.kind === 'sh' ? step.command : step.statement;
}
