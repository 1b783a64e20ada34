/** How far the loader is: counts, and how they are shown. */
import { counted } from '../counted.ts';
import { CLEAR_LINE, type Logger } from '../log.ts';

export interface LoaderProgress {
  /** Messages received from SQS, redeliveries included. */
  received: number;
  /** Those of `received` that SQS had delivered before, to this loader or another. */
  redelivered: number;
  /** Messages that are in Postgres together with their batch's job. */
  staged: number;
  batches: number;
  /** Rows that waited to be masked when the backlog was last read. */
  backlog: number;
}

export interface LoaderSummary extends Omit<LoaderProgress, 'backlog'> {
  /** Messages returned to the queue, because they could not be staged before the end. */
  released: number;
  seconds: number;
  /** 1 if stopping took longer than SHUTDOWN_GRACE_SECONDS, or was cut short. */
  exitCode: 0 | 1;
}

/** Counts what the loader does, and passes on the counts after each change. */
export class Progress {
  readonly #onChange: ((counts: LoaderProgress) => void) | undefined;
  #counts: LoaderProgress = { received: 0, redelivered: 0, staged: 0, batches: 0, backlog: 0 };

  constructor(onChange?: (counts: LoaderProgress) => void) {
    this.#onChange = onChange;
  }

  get counts(): LoaderProgress {
    return { ...this.#counts };
  }

  received(messages: readonly { receiveCount: number }[]): void {
    this.#counts.received += messages.length;
    this.#counts.redelivered += messages.filter(({ receiveCount }) => receiveCount > 1).length;
    this.#onChange?.(this.counts);
  }

  staged(batch: { messages: readonly unknown[] }): void {
    this.#counts.staged += batch.messages.length;
    this.#counts.batches += 1;
    this.#onChange?.(this.counts);
  }

  backlogRead({ rows }: { rows: number }): void {
    this.#counts.backlog = rows;
    this.#onChange?.(this.counts);
  }
}

/** How often the log gets a line, in milliseconds. */
const LOG_EVERY_MS = 10_000;

/** How often the line in a terminal is drawn, in milliseconds. */
const DRAW_EVERY_MS = 100;

/** What the line is drawn on. */
export type Terminal = Pick<NodeJS.WriteStream, 'write' | 'columns'>;

/** Shows how far the loader is, until `end`. */
export interface Report {
  update: (progress: LoaderProgress) => void;
  end: () => void;
}

/**
 * A line in the terminal that is kept up to date. Other output must clear it first, as the log of `createLogger`
 * does.
 */
export function reportToTerminal(terminal: Terminal = process.stderr): Report {
  const startedAt = performance.now();
  const { counts: nothing } = new Progress();
  const report = reportEvery(DRAW_EVERY_MS, (latest = nothing) => {
    const seconds = (performance.now() - startedAt) / 1_000;
    terminal.write(`${CLEAR_LINE}${progressLine(latest, seconds, terminal.columns)}`);
  });
  return {
    update: report.update,
    end: () => {
      report.end();
      terminal.write(CLEAR_LINE);
    },
  };
}

/** The progress in one line. The narrower the terminal, the less it says. */
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

/** A line in the log every ten seconds, if something has changed. */
export function reportToLog(log: Logger): Report {
  let logged: LoaderProgress | undefined;
  return reportEvery(LOG_EVERY_MS, (latest) => {
    if (latest === undefined || (latest.received === logged?.received && latest.staged === logged.staged))
      return;
    const perSecond = Math.round(((latest.received - (logged?.received ?? 0)) * 1_000) / LOG_EVERY_MS);
    log.info({ ...latest, perSecond }, 'loading');
    logged = latest;
  });
}

function reportEvery(ms: number, show: (latest: LoaderProgress | undefined) => void): Report {
  let latest: LoaderProgress | undefined;
  const timer = setInterval(() => show(latest), ms).unref();
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
    ...(released > 0 ? [`${released} returned to the queue`] : []),
  ];
  const tail = extras.length > 0 ? ` (${extras.join(', ')})` : '';
  return `received ${received} and staged ${counted(staged, 'message')} in ${counted(batches, 'batch', 'batches')}, ${seconds.toFixed(1)} s${tail}`;
}
