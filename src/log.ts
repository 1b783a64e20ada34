import pino, { type Logger } from 'pino';
import pretty from 'pino-pretty';

export type { Logger };

/** Clears the terminal's line, where a progress line may be, and moves to its start. */
export const CLEAR_LINE = '\r\u001B[K';

/**
 * The logger of a process: JSON lines on standard error, or readable lines if that is a terminal.
 *
 * Pass only counts, durations, batch ids and codes to it. Never pass an error object (`describe` it), a body, a receipt
 * handle, an address, a device id or a key.
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
        // A line begins with its time.
        customPrettifiers: { time: (time) => `${CLEAR_LINE}[${String(time)}]` },
      })
    : pino.destination({ fd: 2, sync: true });
  return pino({ level, base: null, timestamp: pino.stdTimeFunctions.isoTime }, destination);
}
