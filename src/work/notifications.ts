import type { WorkerEvents } from 'graphile-worker';

/** However many notifications come, an idle worker looks for a job no more often than this, in milliseconds. */
const LOOK_EVERY_MS = 20;

/**
 * Any login may NOTIFY on any channel, with any payload, as often as it likes. graphile-worker shuts down at
 * `worker:migrate` and logs its payload; its migrations are ours (`masked-logins migrate`), so nobody has to be told of one.
 * Of `jobs:insert` it takes the number of jobs from the payload, where one is enough: each place looks for another job
 * when it is done with one.
 *
 * graphile-worker emits this event with the message that it is about to act upon.
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
      // It throws where a place has been told to end.
      if (!workerPool._shuttingDown) workerPool.nudge(1);
    }, wait);
  });
}
