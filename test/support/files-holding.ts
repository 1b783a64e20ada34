import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';

/** The files below a directory that contain one of these, by their paths from it. A server may remove files meanwhile. */
export function filesHolding(directory: string, needles: readonly (Buffer | string)[]): string[] {
  return readdirSync(directory, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.join(entry.parentPath, entry.name))
    .filter((file) => {
      const content = contentOf(file);
      return needles.some((needle) => content.includes(needle));
    })
    .map((file) => path.relative(directory, file));
}

function contentOf(file: string): Buffer {
  try {
    return readFileSync(file);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return Buffer.alloc(0);
    throw error;
  }
}
