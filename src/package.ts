import path from 'node:path';

/** The compiled package has this file in dist/src/, the checkout in src/. */
const ROOT = path.join(import.meta.dirname, import.meta.filename.endsWith('.ts') ? '..' : '../..');

/** The absolute path of a file of this package, from source as well as compiled. `file` is its path in the package. */
export function packageFile(file: string): string {
  return path.join(ROOT, file);
}
