import type { Pool } from 'pg';
import { expect, test, vi } from 'vitest';
import { createLogger } from '../../src/log.ts';
import { takeSteps } from '../../src/work/steps.ts';

/** A database whose steps end so, one after the other. */
function stepping(...outcomes: (boolean | string)[]) {
  const query = vi.fn<() => Promise<unknown>>(async () => {
    const outcome = outcomes.shift();
    if (typeof outcome === 'string') throw Object.assign(new Error('a driver error'), { code: outcome });
    return { rows: [{ more: outcome }] };
  });
  const log = createLogger('silent');
  const warn = vi.spyOn(log, 'warn');
  const take = () => takeSteps({ pool: { query } as unknown as Pool, log }, 'masking.rotate_step', undefined);
  return { query, warn, take };
}

test('steps are taken until there is no more to do', async () => {
  const { query, take } = stepping(true, true, false);
  await take();
  expect(query).toHaveBeenCalledTimes(3);
});

test('a step that did not get its lock is taken again, and that is said once', async () => {
  const { query, warn, take } = stepping('55P03', '55P03', true, false);
  await take();
  expect(query).toHaveBeenCalledTimes(4);
  expect(warn).toHaveBeenCalledTimes(1);
});

test('any other failure ends the turn', async () => {
  const { query, take } = stepping('ML001', false);
  await expect(take()).rejects.toMatchObject({ code: 'ML001' });
  expect(query).toHaveBeenCalledTimes(1);
});
