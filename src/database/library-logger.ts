import type { Logger } from '../log.ts';

/**
 * A logger for Graphile's libraries that passes on the first line of what they say, and never the objects they
 * attach: those hold jobs and errors of the driver.
 *
 * @param LoggerClass the library's own `Logger`
 */
export function libraryLogger<L>(
  LoggerClass: new (factory: () => (level: string, message: string) => void) => L,
  log: Logger,
): L {
  return new LoggerClass(() => (level, message) => {
    const [line] = message.split('\n', 1);
    if (level === 'error') log.error(line);
    else if (level === 'warning') log.warn(line);
    else log.debug(line);
  });
}
