import { findPackageJSON } from 'node:module';
import path from 'node:path';

const ROOT = path.dirname(findPackageJSON(import.meta.url)!);

/** The absolute path of a file of this package, from source as well as compiled. `file` is its path in the package. */
export function packageFile(file: string): string {
  return path.join(ROOT, file);
}
