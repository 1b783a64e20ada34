import { createLogger } from '../../src/log.ts';
import { loginEvents } from '../send/events.ts';
import { leftInQueue, loadAndMask, send } from './pipeline.ts';
import { recover, revealAgain, verify } from './recover.ts';
import { report, reportTotals } from './report.ts';
import { beginRotation, countDistinct } from './rotate.ts';
import { withScratchDirectory } from '../scratch.ts';
import { removeData, startStack, type Stack } from '../stack/stack.ts';

const EVENTS = 5_000;
/** Events that are sent while a key is rotated. */
const MORE_EVENTS = 2_000;
const DUPLICATES = 0.2;
const MALFORMED = 0.01;

export interface DemoOptions {
  /** Called with each paragraph of the demo's output. */
  print: (text: string) => void;
  signal: AbortSignal;
}

/**
 * Shows the main functions from end to end on a temporary stack, of which nothing is left afterwards.
 *
 * @returns whether each event is in exactly one place, and the rotation changed nothing but tokens
 * @throws {FatalError} if a part of it fails or makes no progress
 */
export function runDemo({ print, signal }: DemoOptions): Promise<boolean> {
  return withScratchDirectory('demo', async (localDir) => {
    let stack: Stack | undefined;
    try {
      print('Starting a Postgres and an SQS emulator in a temporary directory …');
      stack = await startStack({ localDir, persistent: false, log: createLogger('warn') });
      signal.throwIfAborted();
      return await show({ stack, print, signal });
    } finally {
      await stack?.stop();
      await removeData(localDir);
    }
  });
}

interface Show extends DemoOptions {
  stack: Stack;
}

async function show({ stack, print, signal }: Show): Promise<boolean> {
  const { urls } = stack.file;
  print(
    `Sending ${EVENTS} events: ${DUPLICATES * 100}% from a device of an earlier event, ${MALFORMED * 100}% malformed …`,
  );
  const sent = await send(stack, events().take(EVENTS), signal);
  await loadAndMask({ stack, total: sent, signal });
  await report(urls, print);

  const revealed = await recover(urls, print);
  print(`\nThe audit log, verified by an auditor:\n  ${await verify(urls)}`);

  print(`\nThe token key of addresses is rotated while ${MORE_EVENTS} more events are loaded …`);
  let most = 0;
  await beginRotation(urls);
  const more = await loadMore({ stack, sent, signal }, async () => {
    most = Math.max(most, (await countDistinct(urls)).addresses);
  });
  const { addresses, devices } = await countDistinct(urls);
  const same = (await revealAgain(urls, revealed)) === revealed.value;
  const exact = addresses === devices;
  print(
    `  done: ${addresses} addresses ${exact ? 'and' : 'BUT'} ${devices} devices (each device has one address${most > addresses ? `; during the rotation an analyst counted up to ${most}` : ''})` +
      `\n  the earlier request, revealed again under the new token, gives ${same ? 'the same address' : 'ANOTHER ADDRESS'}` +
      `\n  audit log: ${await verify(urls)}`,
  );

  const adds = await reportTotals({ urls, sent: sent + more, queued: await leftInQueue(stack), print });
  return adds && exact && same;
}

/** Sends more events and loads them at the same time. If one of the two fails, the other ends as well. */
async function loadMore(
  { stack, sent, signal }: Omit<Show, 'print'> & { sent: number },
  meanwhile: () => Promise<void>,
): Promise<number> {
  const failed = new AbortController();
  const either = AbortSignal.any([signal, failed.signal]);
  const sending = send(stack, events().drop(EVENTS).take(MORE_EVENTS), either);
  sending.catch((error: unknown) => failed.abort(error));
  try {
    await loadAndMask({ stack, total: sent + MORE_EVENTS, signal: either, meanwhile });
  } catch (error) {
    failed.abort(error);
    throw error;
  } finally {
    await sending.catch(() => {});
  }
  return sending;
}

/** The same events at each call. */
function events() {
  return loginEvents({ seed: 'demo', duplicates: DUPLICATES, malformed: MALFORMED });
}
