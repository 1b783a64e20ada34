import { describe } from '../errors.ts';
import type { Logger } from '../log.ts';

/** What a library attaches to a message. */
interface Attached {
  error?: unknown;
  fatalError?: unknown;
}

/**
 * A logger for Graphile's libraries. Of what they say it passes on what their authors wrote, and nothing that they put
 * into it: a text of the driver, a notification's payload, a name. An error that they attach is described.
 *
 * @param LoggerClass the library's own `Logger`
 * @param explain what to say of an error; `describe` unless told
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
 * What comes before the first thing that was put in. These libraries quote it, put it in brackets, or have it follow a
 * colon; numbers of theirs stay. test/house/library-texts.test.ts looks at each text that they log.
 */
function fixedPart(message: string): string {
  return message.replace(/^graphile-migrate\S*: /, '').split(/: |(?:^|\s)['"({]|:?\n/, 1)[0]!;
}

/**
 * Keeps libraries from writing to the console past our logger: graphile-worker prints errors of the driver there, with
 * their stacks and with all that is in them. For the worker's process, once.
 */
export function silenceConsole(log: Logger): void {
  for (const method of ['trace', 'error', 'warn', 'log', 'info', 'debug'] as const) {
    console[method] = () => log.debug('a library wrote to the console; what it wrote is left out');
  }
}
