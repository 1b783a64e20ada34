import type { WorkerEvents } from 'graphile-worker';

/** An idle worker looks for a job at most this often, however many notifications arrive, in milliseconds. */
const LOOK_EVERY_MS = 20;

/**
 * Makes graphile-worker act only on notifications of new jobs, and not on their payload. Any login may NOTIFY on any
 * channel, with any payload, at any rate. At `worker:migrate`, graphile-worker would log the payload and shut down,
 * but `masked-logins migrate` runs its migrations. At `jobs:insert`, it would look for as many jobs as the payload
 * says. One is enough: a slot that has done a job looks for another.
 *
 * graphile-worker emits this event with the message that it is going to act on.
 */
export function onlyNewsOfJobs(events: WorkerEvents): void {
  let lookedAt = Number.NEGATIVE_INFINITY;
  let later: NodeJS.Timeout | undefined;
  events.on('pool:listen:notification', ({ message, workerPool }) => {
    const isNews = message.channel === 'jobs:insert';
    message.payload = '';
    message.channel = 'left out';
    if (!isNews || later !== undefined) return;
    const wait = lookedAt + LOOK_EVERY_MS - performance.now();
    if (wait <= 0) {
      lookedAt = performance.now();
      message.channel = 'jobs:insert';
      return;
    }
    later = setTimeout(() => {
      later = undefined;
      lookedAt = performance.now();
      // It throws while the pool shuts down.
      if (!workerPool._shuttingDown) workerPool.nudge(1);
    }, wait);
  });
}
