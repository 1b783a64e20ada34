import { describe } from '../errors.ts';
import type { Logger } from '../log.ts';

/** What a library attaches to a message. */
interface Attached {
  error?: unknown;
  fatalError?: unknown;
}

/**
 * A logger for Graphile's libraries. It logs only the fixed part of their messages, and not what they insert: texts of
 * the driver, payloads of notifications, names. An error that they attach is described.
 *
 * @param LoggerClass the library's own `Logger`
 * @param explain describes an error
 */
export function libraryLogger<L>(
  LoggerClass: new (factory: () => (level: string, message: string, attached?: Attached) => void) => L,
  log: Logger,
  explain: (error: unknown) => string = describe,
): L {
  return new LoggerClass(() => (level, message, attached) => {
    const error = attached?.error ?? attached?.fatalError;
    const cause = error === undefined ? '' : `: ${explain(error)}`;
    const line = fixedPart(message) + cause;
    if (level === 'error') log.error(line);
    else if (level === 'warning') log.warn(line);
    else log.debug(line);
  });
}

/**
 * The part of a message before the first inserted value. These libraries quote a value, bracket it, or put it after a
 * colon. Their numbers are kept. test/house/library-texts.test.ts checks each text that they log.
 */
function fixedPart(message: string): string {
  return message.replace(/^graphile-migrate\S*: /, '').split(/: |(?:^|\s)['"({]|:?\n/, 1)[0]!;
}

/**
 * Keeps libraries from writing to the console: graphile-worker prints errors of the driver there, with their stacks and
 * all their values. To be called once in the worker's process.
 */
export function silenceConsole(log: Logger): void {
  for (const method of ['trace', 'error', 'warn', 'log', 'info', 'debug'] as const) {
    console[method] = () => log.debug('a library wrote to the console; its text is left out');
  }
}
