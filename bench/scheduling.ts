import { execFileSync } from 'node:child_process';

/**
 * Runs `work` while this process, which runs the emulator, has the scheduling policy SCHED_BATCH.
 *
 * The emulator replaces a service on another machine. On a machine with few processors it would preempt the contenders
 * at every request. With SCHED_BATCH it does not preempt them. It waits for a free processor or for a few milliseconds,
 * which is how long SQS takes to respond. Without the command `chrt` (Linux), the policy does not change.
 */
export async function withBatchScheduling<T>(work: () => Promise<T>): Promise<T> {
  // Only temporarily, because child processes inherit the policy.
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
    // chrt is missing: measure with the default policy.
  }
}
