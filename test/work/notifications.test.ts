import { EventEmitter } from 'node:events';
import type { WorkerEvents } from 'graphile-worker';
import { expect, test, vi } from 'vitest';
import { onlyNewsOfJobs } from '../../src/work/notifications.ts';

/** What is left for graphile-worker to act upon of a message, and the pool that it belongs to. */
function listening() {
  const events: WorkerEvents = new EventEmitter();
  const workerPool = { nudge: vi.fn<(count: number) => void>(), _shuttingDown: false };
  onlyNewsOfJobs(events);
  return {
    workerPool,
    left(channel: string, payload = '{"count": 1}') {
      const message = { channel, payload };
      events.emit('pool:listen:notification', { message, workerPool } as never);
      return message;
    },
  };
}

test('news of a job is acted upon at once, whatever its payload says', () => {
  expect(listening().left('jobs:insert', '{"count": 1000000000}')).toEqual({
    channel: 'jobs:insert',
    payload: '',
  });
});

test.each(['worker:migrate', 'canary'])('%s is not acted upon, and its payload is gone', (channel) => {
  const { left, workerPool } = listening();
  expect(left(channel, '{"breaking": true, "migrationNumber": "canary"}')).toEqual({
    channel: 'left out',
    payload: '',
  });
  expect(workerPool.nudge).not.toHaveBeenCalled();
});

test('of a flood the first is acted upon at once, and all others once, later', async () => {
  const { left, workerPool } = listening();
  const channels = Array.from({ length: 1_000 }, () => left('jobs:insert').channel);
  expect(channels.filter((channel) => channel === 'jobs:insert')).toHaveLength(1);
  expect(workerPool.nudge).not.toHaveBeenCalled();
  await vi.waitFor(() => expect(workerPool.nudge).toHaveBeenCalledTimes(1));
});

test('what was put off is dropped when the pool shuts down meanwhile', () => {
  vi.useFakeTimers();
  const { left, workerPool } = listening();
  left('jobs:insert');
  left('jobs:insert');
  workerPool._shuttingDown = true;
  vi.runAllTimers();
  vi.useRealTimers();
  expect(workerPool.nudge).not.toHaveBeenCalled();
});
