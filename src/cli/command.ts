import { Command } from 'commander';
import { describe, EXIT_USAGE, SettingError } from '../errors.ts';

/** A command line that ends with exit code 2 where it is called wrongly. */
export function commandLine(name: string, description: string): Command {
  return new Command(name)
    .description(description)
    .allowExcessArguments(false)
    .exitOverride(({ exitCode }) => process.exit(exitCode === 0 ? 0 : EXIT_USAGE));
}

/**
 * Runs a command's main function and turns its outcome into an exit code: 0, 2 for a wrong call or setting,
 * 1 for everything else. A failure is one line on standard error that says what happened and what to do.
 *
 * @param main returns the exit code, or nothing for 0
 */
export async function runCommand(main: () => Promise<number | void>): Promise<void> {
  try {
    process.exitCode = (await main()) ?? 0;
  } catch (error) {
    process.stderr.write(`${describe(error)}\n`);
    // At once: a connection that was refused halfway would keep the process until the server gives it up.
    process.exit(error instanceof SettingError ? EXIT_USAGE : 1);
  }
}
