import { findPackageJSON } from 'node:module';
import path from 'node:path';

const ROOT = path.dirname(findPackageJSON(import.meta.url)!);

/** A file of this package by its path from the package's root, whether it runs from source or compiled. */
export function packageFile(file: string): string {
  return path.join(ROOT, file);
}
