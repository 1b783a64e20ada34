/**
 * `npm run load`: moves messages from the queue into staging until the queue is empty; with `-- --follow` until
 * SIGTERM or SIGINT.
 */
import { readSettings, requireDatabase, requireQueue } from '../config.ts';
import { reportToLog, reportToTerminal, summaryLine } from '../load/report.ts';
import { runLoader } from '../load/run.ts';
import { createLogger } from '../log.ts';
import { commandLine, runCommand } from './command.ts';
import { stopSignal } from './signals.ts';

const command = commandLine(
  'load',
  'Moves login events from the SQS queue into staging, until the queue is empty',
)
  .option('--follow', 'go on until SIGTERM or Ctrl-C')
  .option('--json', 'print the summary as JSON')
  .parse();

await runCommand(async () => {
  const { follow = false, json = false } = command.opts<{ follow?: boolean; json?: boolean }>();
  const settings = readSettings('loader');
  const database = requireDatabase(settings);
  const queue = requireQueue(settings);
  const log = createLogger(settings.logLevel);
  const report = process.stderr.isTTY ? reportToTerminal() : reportToLog(log);
  const stop = stopSignal(() =>
    log.info('stopping: polls under way end first; a second signal leaves at once'),
  );
  try {
    const summary = await runLoader({
      settings,
      queue,
      database,
      log,
      follow,
      stop,
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
});
