import { expect, test } from 'vitest';
import { mutated } from '../support/faults/mutations.ts';
import { runSeed, type SeedReport } from '../support/faults/run-seed.ts';

/** Long enough for a slow machine: only a run that hangs exceeds it. */
const TIMEOUT_MS = 400_000;

const runWith = (mutation: string): Promise<SeedReport> =>
  runSeed(mutated(mutation, { seed: 1, messages: 300 }));

test(
  'a worker that deletes from SQS before masking has committed loses messages, and the checker detects it',
  async () => {
    const { ok, findings, hits } = await runWith('delete-before-commit');
    expect(hits['kill -9 of Postgres while masking']).toBe(1);
    expect(ok).toBe(false);
    expect(findings?.lost).toBeGreaterThan(0);
  },
  TIMEOUT_MS,
);

test(
  'without ON CONFLICT, a message that SQS delivers twice is quarantined, and the checker detects it',
  async () => {
    const { ok, findings, hits } = await runWith('no-on-conflict');
    expect(hits['sqs duplicated delivery']).toBeGreaterThan(0);
    expect(ok).toBe(false);
    expect(findings?.misplaced).toBeGreaterThan(0);
  },
  TIMEOUT_MS,
);

test(
  'without a defect, a run with the same faults passes',
  async () => {
    const { schedule } = mutated('delete-before-commit', { seed: 1, messages: 300 });
    const { failures } = await runSeed({ seed: 1, messages: 300, schedule: schedule! });
    expect(failures).toEqual([]);
  },
  TIMEOUT_MS,
);
