/**
 * Preloaded by the npm scripts that are not for production. Ends the process with one line if the development
 * dependencies are not installed.
 */
import { existsSync, readFileSync } from 'node:fs';
import '../bin/requirements.js';

const fromRoot = (file) => new URL(`../${file}`, import.meta.url);
const { devDependencies } = JSON.parse(readFileSync(fromRoot('package.json'), 'utf8'));
const missing = Object.keys(devDependencies).filter((name) => !existsSync(fromRoot(`node_modules/${name}`)));
if (missing.length > 0) {
  const what = missing.length > 3 ? `${missing.length} packages` : missing.join(', ');
  console.error(
    `This command is for development, and ${what} of devDependencies are not installed: run npm ci without --omit=dev, with NODE_ENV not set to production.`,
  );
  process.exit(1);
}
