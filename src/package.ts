import path from 'node:path';

/** The compiled package has this file in dist/src/, the checkout in src/. */
const ROOT = path.join(import.meta.dirname, import.meta.filename.endsWith('.ts') ? '..' : '../..');

/** A file of this package by its path from the package's root, whether it runs from source or compiled. */
export function packageFile(file: string): string {
  return path.join(ROOT, file);
}
