import { setTimeout as sleep } from 'node:timers/promises';
import { expect } from 'vitest';
import { createPool } from '../../src/database/pool.ts';
import type { StackLogin } from '../../local/stack/logins.ts';
import {
  expectAllReveal,
  expectDuplicatesExact,
  liftLimits,
  rotationsOf,
  versionsIn,
  type Login,
  type Pools,
} from './keys.ts';
import { until, type Pipeline, type Run } from './pipeline.ts';

export interface RotationUnderLoad {
  /** Total number of messages. Half are sent before the rotation starts, and an equal part of the rest at each kill. */
  logins: number;
  /** How often the worker is killed during the rotation. */
  kills: number;
  /**
   * Whether to release the jobs of a killed worker at once. Otherwise heartbeats release them within a minute.
   */
  releaseJobs: boolean;
  report?: (line: string) => void;
}

/** A login whose address and device are shared by many logins if `n` is even, and unique if it is odd. */
function loginNumber(n: number, of: number): Login {
  const shared = n % 2 === 0;
  const address = shared ? n % Math.ceil(of / 20) : n;
  return {
    user: `user-${n % Math.ceil(of / 10)}`,
    ip: `10.${address >> 16}.${(address >> 8) & 255}.${address & 255}`,
    device: shared ? `device-${n % Math.ceil(of / 15)}` : `device-own-${n}`,
  };
}

/**
 * Rotates every key of a stack with real processes, while logins are loaded and the worker is killed. Expects that in
 * the end everything is under the new keys, that every value can be revealed, and that equal values have equal tokens.
 *
 * @returns the number of logins
 */
export async function rotateUnderLoad(pipeline: Pipeline, options: RotationUnderLoad): Promise<number> {
  const { logins, kills, releaseJobs, report = () => {} } = options;
  const { superuser, stack } = pipeline;
  const pools = new Map<StackLogin, ReturnType<typeof createPool>>();
  const db: Pools = {
    superuser,
    pool(login) {
      const known =
        pools.get(login) ?? createPool(stack.file.urls[login], { max: 4, applicationName: `test ${login}` });
      pools.set(login, known);
      return known;
    },
  };
  const startedAt = performance.now();
  const reportLine = (line: string) =>
    report(`${((performance.now() - startedAt) / 1000).toFixed(1)} s: ${line}`);
  const sent = new Map<string, Login>();
  const send = async (from: number, to: number) => {
    const events = Array.from({ length: to - from }, (_, n) => loginNumber(from + n, logins));
    const ids = await pipeline.send(
      events.map(({ user, ip, device }) => JSON.stringify({ user_id: user, ip, device_id: device })),
    );
    for (const [n, id] of ids.entries()) sent.set(id, events[n]!);
  };
  const count = async (what: string): Promise<number> =>
    Number((await superuser.query(`select count(*) as count from ${what}`)).rows[0].count);
  const startWorker = (): Run => pipeline.run('worker', [], { SQS_VISIBILITY_TIMEOUT_SECONDS: '300' });

  try {
    await liftLimits(db);
    pipeline.run('load', ['--follow'], { SQS_WAIT_TIME_SECONDS: '1' });
    let worker = startWorker();
    const half = Math.floor(logins / 2);
    await send(0, half);
    await until(async () => (await count('public.user_logins')) === half, 600_000);
    reportLine(`${half} logins are loaded`);

    const rotating = pipeline.run('keys', ['rotate']);
    expect(await rotating.ended).toBe(0);
    expect(await rotationsOf(db)).toHaveLength(5);
    // A cipher key processes the vault; a token key processes the vault and the logins.
    const total = 2 * (await count('masking.vault')) + 2 * logins;
    const done = async () => (await rotationsOf(db)).reduce((sum, { rows }) => sum + rows, 0);
    const finished = async () => (await rotationsOf(db)).every(({ state }) => state === 'done');

    for (let kill = 1; kill <= kills; kill += 1) {
      const enough = (total * kill) / (kills + 2);
      await until(async () => (await done()) >= enough, 600_000);
      // The pause lets loading continue, so that the worker is killed during the rotation however long loading takes.
      await db.pool('custodian').query('select masking.pause_rotation()');
      expect(await finished()).toBe(false);
      const loaded = await count('public.user_logins');
      const slice = (part: number) => half + Math.floor(((logins - half) * part) / kills);
      const sending = send(slice(kill - 1), slice(kill));
      await until(async () => (await count('public.user_logins')) > loaded, 600_000);
      const paused = await done();
      await db.pool('custodian').query('select masking.resume_rotation()');
      await until(async () => (await done()) > paused, 600_000);
      worker.process.kill('SIGKILL');
      expect(await worker.ended).toBe('SIGKILL');
      reportLine(
        `killed the worker after ${await done()} rows, of ${await count('public.user_logins')} logins so far`,
      );
      if (releaseJobs) {
        await superuser.query('update graphile_worker._private_jobs set locked_at = null, locked_by = null');
      }
      worker = startWorker();
      await sending;
    }
    await until(async () => (await count('public.user_logins')) === logins, 600_000);
    reportLine('all logins are loaded');
    while (!(await finished())) {
      expect(worker.process.exitCode).toBeNull();
      await sleep(100);
    }
    reportLine(`the rotation is done, after ${await done()} rows`);

    expect(await versionsIn(db, 'ip')).toEqual([3]);
    expect(await versionsIn(db, 'device')).toEqual([4]);
    const { rows } = await superuser.query(
      'select distinct key_version as version from masking.vault order by 1',
    );
    expect(rows.map(({ version }) => version)).toEqual([4, 5]);
    await expectAllReveal(db, sent);
    await expectDuplicatesExact(db, sent);
    reportLine(`${sent.size} logins reveal what was sent, and equal values have equal tokens`);
    return sent.size;
  } finally {
    await Promise.all([...pools.values()].map((pool) => pool.end()));
  }
}
