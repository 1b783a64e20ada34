import { renameSync, rmSync, writeFileSync } from 'node:fs';

/** Writes a file that only this user can read. It is replaced as a whole or not at all. */
export function writeSecretFile(file: string, content: string): void {
  const temporary = `${file}.new`;
  rmSync(temporary, { force: true });
  writeFileSync(temporary, content, { mode: 0o600, flag: 'wx', flush: true });
  renameSync(temporary, file);
}
