import { readSettings, requireDatabase, requireQueue } from '../config.ts';
import { silenceConsole } from '../database/library-logger.ts';
import { describe } from '../errors.ts';
import { explaining } from '../explain.ts';
import { createLogger } from '../log.ts';
import { onceLine, onceProblems } from '../work/report.ts';
import { runWorker, runWorkerOnce } from '../work/worker.ts';
import { TASKS } from '../../tasks/index.ts';
import { leaveNow, stopSignal } from './signals.ts';

/** `worker`: masks staged batches and runs maintenance. */
export async function run({ once }: { once: boolean }): Promise<number | void> {
  const settings = readSettings();
  const log = createLogger(settings.logLevel);
  const onStop = (): void => {
    log.info('stopping: waiting for jobs under way; a second signal leaves at once');
    setTimeout(() => {
      log.error(
        'the jobs under way took longer than SHUTDOWN_GRACE_SECONDS: another worker does them and empties staging',
      );
      leaveNow();
    }, settings.shutdownGraceSeconds * 1_000).unref();
  };
  const stop = stopSignal({ onStop, onLeave: leaveNow });
  const options = {
    settings,
    database: requireDatabase(settings),
    queue: requireQueue(settings),
    log,
    stop,
    tasks: TASKS,
  };
  silenceConsole(log);
  // A rejection in a library that nothing awaits must not end a worker that can continue.
  process.on('unhandledRejection', (error) => log.warn(`unhandled rejection: ${describe(error)}`));

  if (!once) return runWorker(options);
  const situation = { command: 'worker', database: options.database, queue: options.queue } as const;
  const summary = await explaining(situation, () => runWorkerOnce(options));
  process.stdout.write(`${onceLine(summary)}\n`);
  const problems = onceProblems(summary, stop.aborted);
  for (const problem of problems) process.stderr.write(`${problem}\n`);
  return problems.length === 0 ? 0 : 1;
}
