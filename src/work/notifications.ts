import type { WorkerEvents } from 'graphile-worker';

/**
 * Any login may NOTIFY on any channel, with any payload. graphile-worker shuts down at `worker:migrate` and logs its
 * payload; its migrations are ours (`npm run migrate`), so that nobody has to be told of one. Of `jobs:insert` it
 * takes the number of jobs from the payload, where one is enough: each place looks for another job when it has one.
 *
 * graphile-worker emits this event with the message that it is about to act upon.
 */
export function onlyNewsOfJobs(events: WorkerEvents): void {
  events.on('pool:listen:notification', ({ message }) => {
    message.payload = '';
    if (message.channel !== 'jobs:insert') message.channel = 'left out';
  });
}
