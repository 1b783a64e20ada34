import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';

export const ROOT = path.join(import.meta.dirname, '../..');

export interface SourceFile {
  /** The path from the repository's root, such as `src/config.ts`. */
  name: string;
  text: string;
}

export function read(name: string): string {
  return readFileSync(path.join(ROOT, name), 'utf8');
}

/** All files below a directory with this extension. */
export function filesOf(directory: string, extension: string): SourceFile[] {
  return readdirSync(path.join(ROOT, directory), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith(extension))
    .map((entry) => path.relative(ROOT, path.join(entry.parentPath, entry.name)))
    .sort()
    .map((name) => ({ name, text: read(name) }));
}
