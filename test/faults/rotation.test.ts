import { afterEach, beforeEach, expect, test } from 'vitest';
import { startPipeline, type Pipeline } from '../support/pipeline.ts';
import { rotateUnderLoad } from '../support/under-load.ts';

/** The long run is ROTATION_ROWS=200000 ROTATION_KILLS=5. It does not release the jobs of killed workers early. */
const LOGINS = Number(process.env['ROTATION_ROWS'] ?? 10_000);
const KILLS = Number(process.env['ROTATION_KILLS'] ?? 2);
const LONG = process.env['ROTATION_ROWS'] !== undefined;
const report = (line: string): void => {
  process.stderr.write(`${line}\n`);
};

let pipeline: Pipeline;
beforeEach(async () => {
  pipeline = await startPipeline();
});
afterEach(() => pipeline.stop());

test(
  'all keys are rotated while logins arrive and the worker is killed, without losing or duplicating a login',
  { timeout: LONG ? 3_600_000 : 120_000 },
  async () => {
    const sent = await rotateUnderLoad(pipeline, {
      logins: LOGINS,
      kills: KILLS,
      releaseJobs: !LONG,
      ...(LONG ? { report } : {}),
    });
    expect(sent).toBe(LOGINS);
  },
);
