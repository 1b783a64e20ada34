import { readSettings, requireDatabase, requireQueue } from '../config.ts';
import { reportToLog, reportToTerminal, summaryLine } from '../load/progress.ts';
import { runLoader } from '../load/run.ts';
import { createLogger, type Logger } from '../log.ts';
import { stopSignal } from './signals.ts';

interface Options {
  follow: boolean;
  json: boolean;
}

/** `load`: moves messages from the queue into staging, until the queue is empty or, with `--follow`, until a signal. */
export async function run({ follow, json }: Options): Promise<number> {
  const settings = readSettings();
  const database = requireDatabase(settings);
  const queue = requireQueue(settings);
  const log = createLogger(settings.logLevel);
  const report = process.stderr.isTTY ? reportToTerminal() : reportToLog(log);
  const leaving = new AbortController();
  const stop = stopSignal({ onStop: () => report.end(), onLeave: () => leaving.abort() });
  try {
    const summary = await runLoader({
      settings,
      queue,
      database,
      log,
      follow,
      stop,
      leave: leaving.signal,
      onStopping: (pollSeconds) => showStopping(pollSeconds, log),
      onProgress: (progress) => report.update(progress),
    });
    report.end();
    process.stdout.write(`${json ? JSON.stringify(summary) : summaryLine(summary)}\n`);
    // What did not end in time would keep the process alive.
    if (summary.exitCode !== 0) process.exit(summary.exitCode);
    return summary.exitCode;
  } finally {
    report.end();
  }
}

/** Says what the stop waits for. A person at a terminal sees it whatever LOG_LEVEL is. */
function showStopping(pollSeconds: number, log: Logger): void {
  if (process.stderr.isTTY) {
    const wait =
      pollSeconds > 0 ? `waiting for SQS, ${pollSeconds} s at most.` : 'staging what was received.';
    process.stderr.write(
      `Stopping: ${wait}\nPress Ctrl-C again to leave at once; what is not staged is returned to the queue.\n`,
    );
  } else {
    log.info({ pollSeconds }, 'stopping: waiting for polls under way; a second signal leaves at once');
  }
}
