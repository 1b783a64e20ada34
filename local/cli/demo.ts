import { runDemo } from '../demo/demo.ts';
import { commandLine, runCommand } from '../../src/cli/command.ts';
import { EXIT_INTERRUPTED, stopSignal } from '../../src/cli/signals.ts';

await runCommand(async () => {
  commandLine(
    'demo',
    'Shows the main functions on a temporary stack: login events in, masked logins out, nothing left behind.',
  ).parse();
  // Before anything is started, so that Ctrl-C leaves nothing behind.
  const signal = stopSignal();
  try {
    const adds = await runDemo({ print: (text) => process.stdout.write(`${text}\n`), signal });
    return adds ? 0 : 1;
  } catch (error) {
    if (signal.aborted) return EXIT_INTERRUPTED;
    throw error;
  }
});
