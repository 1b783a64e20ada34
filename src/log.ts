import pino, { type Logger } from 'pino';
import pretty from 'pino-pretty';

export type { Logger };

/** Empties the terminal's line, and begins at its left: a progress line may stand there. */
export const CLEAR_LINE = '\r\u001B[K';

/**
 * The logger of a process: JSON lines on standard error, or readable lines where that is a terminal.
 *
 * What may be passed to it: counts, durations, batch ids, codes. Never an error object (`describe` it), never
 * a body, a receipt handle, an address, a device id or a key.
 *
 * @param level one of pino's levels: fatal, error, warn, info, debug, trace, silent
 */
export function createLogger(level: string): Logger {
  const destination = process.stderr.isTTY
    ? pretty({
        destination: 2,
        sync: true,
        ignore: 'pid,hostname',
        translateTime: 'SYS:HH:MM:ss',
        singleLine: true,
        // The time is what a line begins with.
        customPrettifiers: { time: (time) => `${CLEAR_LINE}[${String(time)}]` },
      })
    : pino.destination({ fd: 2, sync: true });
  return pino({ level, base: null, timestamp: pino.stdTimeFunctions.isoTime }, destination);
}
