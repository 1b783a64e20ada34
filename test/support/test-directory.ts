import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { removeData } from '../../local/stack/stack.ts';

/** Creates a temporary directory for the stack or server of one test. The server's user may pass through it. */
export function makeTestDirectory(): string {
  const directory = mkdtempSync(path.join(tmpdir(), 'masked-logins-test-'));
  chmodSync(directory, 0o711);
  return directory;
}

/** Ends what still runs in the directory, and removes it. */
export async function removeTestDirectory(directory: string): Promise<void> {
  await removeData(directory);
  rmSync(directory, { recursive: true, force: true });
}
