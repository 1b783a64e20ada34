import { readSettings, requireDatabase, requireQueue } from '../config.ts';
import { reportToLog, reportToTerminal, summaryLine } from '../load/report.ts';
import { runLoader } from '../load/run.ts';
import { createLogger, type Logger } from '../log.ts';
import { stopSignal } from './signals.ts';

interface Options {
  follow: boolean;
  json: boolean;
}

/** `load`: moves messages from the queue into staging until the queue is empty or, with `--follow`, until it is stopped. */
export async function run({ follow, json }: Options): Promise<number> {
  const settings = readSettings();
  const database = requireDatabase(settings);
  const queue = requireQueue(settings);
  const log = createLogger(settings.logLevel);
  const report = process.stderr.isTTY ? reportToTerminal() : reportToLog(log);
  const leaving = new AbortController();
  const stop = stopSignal(
    () => report.end(),
    () => leaving.abort(),
  );
  try {
    const summary = await runLoader({
      settings,
      queue,
      database,
      log,
      follow,
      stop,
      leave: leaving.signal,
      onStopping: (pollSeconds) => tellOfStopping(pollSeconds, log),
      onProgress: (progress) => report.update(progress),
    });
    report.end();
    process.stdout.write(`${json ? JSON.stringify(summary) : summaryLine(summary)}\n`);
    // What could not be ended in time would keep the process from ending.
    if (summary.exitCode !== 0) process.exit(summary.exitCode);
    return summary.exitCode;
  } finally {
    report.end();
  }
}

/** Somebody at a terminal is told what they wait for, whatever LOG_LEVEL is. */
function tellOfStopping(pollSeconds: number, log: Logger): void {
  if (process.stderr.isTTY) {
    const wait =
      pollSeconds > 0 ? `${pollSeconds} s at most, until SQS has answered.` : 'staging what was received.';
    process.stderr.write(`Stopping: ${wait}\nCtrl-C again leaves at once; what is not staged goes back.\n`);
  } else {
    log.info({ pollSeconds }, 'stopping: polls under way end first; a second signal does not wait for them');
  }
}
