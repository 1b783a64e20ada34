import { expect, test } from 'vitest';
import { mutated } from '../support/faults/mutations.ts';
import { runSeed, type SeedReport } from '../support/faults/run-seed.ts';

/** A run hangs after minutes; a slow machine does not make it fail. */
const TIMEOUT_MS = 400_000;

const runWith = (mutation: string): Promise<SeedReport> =>
  runSeed(mutated(mutation, { seed: 1, messages: 300 }));

test(
  'a worker that deletes from SQS before masking is committed loses messages, and the checker sees it',
  async () => {
    const { ok, findings, hits } = await runWith('delete-before-commit');
    expect(hits['kill -9 of Postgres in masking']).toBe(1);
    expect(ok).toBe(false);
    expect(findings?.lost).toBeGreaterThan(0);
  },
  TIMEOUT_MS,
);

test(
  'without ON CONFLICT a message that SQS delivers twice ends in the wrong place, and the checker sees it',
  async () => {
    const { ok, findings, hits } = await runWith('no-on-conflict');
    expect(hits['sqs duplicated delivery']).toBeGreaterThan(0);
    expect(ok).toBe(false);
    expect(findings?.misplaced).toBeGreaterThan(0);
  },
  TIMEOUT_MS,
);

test(
  'the same faults without a defect leave nothing to complain about',
  async () => {
    const { schedule } = mutated('delete-before-commit', { seed: 1, messages: 300 });
    const { failures } = await runSeed({ seed: 1, messages: 300, schedule: schedule! });
    expect(failures).toEqual([]);
  },
  TIMEOUT_MS,
);
