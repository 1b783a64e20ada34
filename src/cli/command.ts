import { Command } from 'commander';
import { columnsOf } from '../config.ts';
import { describe, EXIT_USAGE, SettingError } from '../errors.ts';

/** Command lines, each with a description. */
export type Examples = readonly (readonly [line: string, what: string])[];

/**
 * A command line. If it is called wrongly, it prints one line to standard error and exits with code 2.
 *
 * @param examples shown at the end of its `--help`
 */
export function commandLine(name: string, description: string, examples: Examples = []): Command {
  const command: Command = new Command(name)
    .description(description)
    .allowExcessArguments(false)
    .addHelpText('after', ({ error }) => (error ? '' : renderExamples(examples)))
    .configureHelp({ minWidthToWrap: 20, subcommandTerm: (subcommand) => subcommand.name() })
    .configureOutput({
      getOutHelpWidth: () => columnsOf(process.stdout) ?? 80,
      outputError: (text) => complain(oneLine(text), command),
      // Commander prints help here if a subcommand is missing or does not exist.
      writeErr: () => complain('error: a command is missing or unknown', command),
    })
    .exitOverride(({ exitCode }) => process.exit(exitCode === 0 ? 0 : EXIT_USAGE));
  return command;
}

function complain(what: string, { commands }: Command): void {
  const names = commands.map((each) => each.name()).join(', ');
  const hint = names === '' ? '--help shows what there is' : `there are ${names}; --help says more`;
  process.stderr.write(`${what} (${hint})\n`);
}

function renderExamples(examples: Examples): string {
  if (examples.length === 0) return '';
  return ['', 'Examples:', ...examples.map(([line, what]) => `  ${line}\n      ${what}`)].join('\n');
}

/**
 * Commander's message in one line. It repeats what was typed, which may be a key or a connection string, so only
 * short words are kept.
 */
function oneLine(text: string): string {
  const typed = process.argv.slice(2).flatMap((argument) => argument.split('='));
  const long = typed.filter((part) => part !== '' && !/^[\w-]{1,20}$/.test(part));
  return long.reduce((line, part) => line.replaceAll(part, '…'), text.trim().replaceAll(/\s*\n/g, ' '));
}

/**
 * Runs a command's main function and sets the exit code: 0, 2 for a wrong call or setting, 1 for any other failure. A
 * failure is one line on standard error that says what happened and what to do.
 *
 * @param main returns the exit code, or nothing for 0
 */
export async function runCommand(main: () => Promise<number | void>): Promise<void> {
  try {
    process.exitCode = (await main()) ?? 0;
  } catch (error) {
    process.stderr.write(`${describe(error)}\n`);
    // At once: a connection that was refused halfway keeps the process alive until the server closes it.
    process.exit(error instanceof SettingError ? EXIT_USAGE : 1);
  }
}
