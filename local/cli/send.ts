import { randomBytes } from 'node:crypto';
import { readSettings, requireQueue } from '../../src/config.ts';
import { explaining } from '../../src/explain.ts';
import { createQueueClient } from '../../src/queue/client.ts';
import { fillSettings } from '../environment.ts';
import { linesOf } from '../send/lines.ts';
import { loginEvents } from '../send/events.ts';
import { sendOptions, type SendArguments } from '../send/options.ts';
import { sendEvents } from '../send/send.ts';
import { commandLine, runCommand } from '../../src/cli/command.ts';
import { EXIT_INTERRUPTED, stopSignal } from '../../src/cli/signals.ts';

await runCommand(async () => {
  const program = commandLine(
    'send',
    'Sends login events to the queue: generated events, or the lines of a file.',
  )
    .option('--count <number>', 'how many events to generate (default: 1000)')
    .option('--rate <per second>', 'messages a second (default: as many as the queue accepts)')
    .option('--duplicates <share>', 'share of events with the ip and device of an earlier one (default: 0.2)')
    .option('--malformed <share>', 'share of bodies that are not login events (default: 0.01)')
    .option('--seed <text>', 'the same seed generates the same events (default: a random one)')
    .option('--file <path>', 'send the lines of this file instead, unchanged')
    .option('--json', 'print the summary as JSON', false)
    .parse();
  const given = sendOptions(program.opts<SendArguments>());
  fillSettings('loader');
  const queue = requireQueue(readSettings());

  const seed = given.seed ?? randomBytes(4).toString('hex');
  const bodies =
    given.file === undefined
      ? loginEvents({ seed, duplicates: given.duplicates, malformed: given.malformed }).take(given.count)
      : linesOf(given.file);
  const signal = stopSignal();
  const client = createQueueClient(queue, { maxSockets: 16 });
  try {
    const { sent, rejected, seconds } = await explaining({ command: 'send', queue }, () =>
      sendEvents({ client, queueUrl: queue.url, bodies, rate: given.rate, signal }),
    );
    const interrupted = signal.aborted;
    const origin = given.file === undefined ? { seed } : {};
    if (given.json) {
      process.stdout.write(`${JSON.stringify({ sent, rejected, seconds, interrupted, ...origin })}\n`);
    } else {
      const notes = [
        `${sent} messages sent in ${seconds.toFixed(1)} s (${Math.round(sent / Math.max(seconds, 0.001))} a second)`,
        ...(rejected > 0
          ? [`${rejected} refused by SQS: too long, or with characters that it does not accept`]
          : []),
        ...(given.file === undefined ? [`seed ${seed}`] : []),
        ...(interrupted ? ['interrupted'] : []),
      ];
      process.stdout.write(`${notes.join(', ')}\n`);
    }
    return interrupted ? EXIT_INTERRUPTED : rejected > 0 ? 1 : 0;
  } finally {
    client.destroy();
  }
});
