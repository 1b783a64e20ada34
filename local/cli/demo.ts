import { runDemo } from '../demo/demo.ts';
import { commandLine, runCommand } from '../../src/cli/command.ts';

/** What shells report for a command that Ctrl-C ended. */
const EXIT_INTERRUPTED = 130;

await runCommand(async () => {
  commandLine(
    'demo',
    'Shows the main job on a stack of its own: login events in, masked logins out, nothing left behind.',
  ).parse();
  // Listened for from the first moment, so that Ctrl-C leaves nothing behind either.
  const stopping = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => stopping.abort());
  try {
    const adds = await runDemo({
      print: (text) => process.stdout.write(`${text}\n`),
      signal: stopping.signal,
    });
    return adds ? 0 : 1;
  } catch (error) {
    if (stopping.signal.aborted) return EXIT_INTERRUPTED;
    throw error;
  }
});
