import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { removeData } from '../../local/stack/stack.ts';

/** A directory for a stack or a server of a test's own, through which the server's user gets. */
export function makePlace(): string {
  const directory = mkdtempSync(path.join(tmpdir(), 'masked-logins-test-'));
  chmodSync(directory, 0o711);
  return directory;
}

/** Removes it, with whatever still runs in it. */
export async function removePlace(directory: string): Promise<void> {
  await removeData(directory);
  rmSync(directory, { recursive: true, force: true });
}
