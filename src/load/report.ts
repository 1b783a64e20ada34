import { SingleBar } from 'cli-progress';
import type { Logger } from '../log.ts';
import type { LoaderProgress, LoaderSummary } from './options.ts';

/** How often a line tells how far it is, where no terminal shows it, in milliseconds. */
const LINE_EVERY_MS = 10_000;

/** Shows how far the loader is, until `end`. */
export interface Report {
  update: (progress: LoaderProgress) => void;
  end: () => void;
}

/** A line in the terminal (on standard error) that is kept up to date. */
export function reportToTerminal(): Report {
  const line = new SingleBar({
    format: '{value} received · {perSecond}/s · {staged} staged · {backlog} waiting to be masked',
    clearOnComplete: true,
    hideCursor: true,
  });
  const startedAt = performance.now();
  line.start(0, 0, { perSecond: 0, staged: 0, backlog: 0 });
  return {
    update: ({ received, staged, backlog }) => {
      const seconds = (performance.now() - startedAt) / 1_000;
      line.update(received, { perSecond: Math.round(received / seconds), staged, backlog });
    },
    end: () => line.stop(),
  };
}

/** A line in the log every ten seconds in which something happened. */
export function reportToLog(log: Logger): Report {
  let told: LoaderProgress | undefined;
  let latest: LoaderProgress | undefined;
  const tell = (): void => {
    if (latest === undefined || (latest.received === told?.received && latest.staged === told.staged)) return;
    const perSecond = Math.round(((latest.received - (told?.received ?? 0)) * 1_000) / LINE_EVERY_MS);
    log.info({ ...latest, perSecond }, 'loading');
    told = latest;
  };
  const timer = setInterval(tell, LINE_EVERY_MS).unref();
  return {
    update: (progress) => {
      latest = progress;
    },
    end: () => clearInterval(timer),
  };
}

/** The summary as one line for people. */
export function summaryLine({
  received,
  redelivered,
  staged,
  batches,
  released,
  seconds,
}: LoaderSummary): string {
  const extras = [
    ...(redelivered > 0 ? [`${redelivered} of them delivered before`] : []),
    ...(released > 0 ? [`${released} given back to the queue`] : []),
  ];
  const tail = extras.length > 0 ? ` (${extras.join(', ')})` : '';
  return `received ${received} and staged ${staged} messages in ${batches} batches, ${seconds.toFixed(1)} s${tail}`;
}
