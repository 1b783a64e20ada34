import { execFileSync } from 'node:child_process';

/**
 * Does something while this process, which is the emulator, takes a processor from nobody.
 *
 * The emulator stands for a service on another machine. Where there are few processors it would push aside whom it is
 * to measure with every request, whoever keeps all of them busy most of all. As a batch process it waits for one that
 * is free, or for a few milliseconds, which is what SQS takes to answer. On Linux; elsewhere nothing is changed.
 */
export async function asBatch<T>(work: () => Promise<T>): Promise<T> {
  // Only for so long: processes that are started meanwhile would be batch processes too.
  schedule('--batch');
  try {
    return await work();
  } finally {
    schedule('--other');
  }
}

function schedule(policy: '--batch' | '--other'): void {
  try {
    execFileSync('chrt', ['--all-tasks', policy, '--pid', '0', String(process.pid)], { stdio: 'ignore' });
  } catch {
    // There is no such command: then it is measured without.
  }
}
