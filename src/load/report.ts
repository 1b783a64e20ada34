import { counted } from '../counted.ts';
import { CLEAR_LINE, type Logger } from '../log.ts';
import type { LoaderProgress, LoaderSummary } from './options.ts';

/** How often a line tells how far it is, where no terminal shows it, in milliseconds. */
const LINE_EVERY_MS = 10_000;

/** How often the line in a terminal is drawn, in milliseconds. */
const DRAW_EVERY_MS = 100;

/** What it is drawn on. */
export type Terminal = Pick<NodeJS.WriteStream, 'write' | 'columns'>;

/** Shows how far the loader is, until `end`. */
export interface Report {
  update: (progress: LoaderProgress) => void;
  end: () => void;
}

/** A line in the terminal that is kept up to date. What else is written there begins by clearing it (`createLogger` does). */
export function reportToTerminal(terminal: Terminal = process.stderr): Report {
  const startedAt = performance.now();
  let latest: LoaderProgress = { received: 0, redelivered: 0, staged: 0, batches: 0, backlog: 0 };
  const draw = (): void => {
    const seconds = (performance.now() - startedAt) / 1_000;
    terminal.write(`${CLEAR_LINE}${progressLine(latest, seconds, terminal.columns)}`);
  };
  const timer = setInterval(draw, DRAW_EVERY_MS).unref();
  return {
    update: (progress) => {
      latest = progress;
    },
    end: () => {
      clearInterval(timer);
      terminal.write(CLEAR_LINE);
    },
  };
}

/** The progress in so many words as a terminal of so many columns takes on one line. */
export function progressLine(
  { received, staged, backlog }: LoaderProgress,
  seconds: number,
  columns = 80,
): string {
  const perSecond = Math.round(received / Math.max(seconds, 1));
  const lines = [
    `${received} received · ${perSecond}/s · ${staged} staged · ${backlog} waiting to be masked`,
    `${received} received · ${staged} staged · ${backlog} waiting`,
    `${received} received · ${staged} staged`,
    `${staged} staged`,
  ];
  // The last column stays free: some terminals wrap as soon as it is filled.
  return lines.find((line) => line.length < columns) ?? '';
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
  return `received ${received} and staged ${counted(staged, 'message')} in ${counted(batches, 'batch', 'batches')}, ${seconds.toFixed(1)} s${tail}`;
}
