import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

/** Makes a temporary directory for a stack or a Postgres, and removes it after `use`. */
export async function withScratchDirectory<T>(
  name: string,
  use: (directory: string) => Promise<T>,
): Promise<T> {
  const directory = mkdtempSync(path.join(tmpdir(), `masked-logins-${name}-`));
  // If this is root, Postgres runs as another user, who must get through. The files in it have their own modes.
  chmodSync(directory, 0o711);
  try {
    return await use(directory);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}
