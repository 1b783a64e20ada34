/**
 * Ends the process with one line if it lacks what the project needs: a new enough Node, or the dependencies. Plain
 * JavaScript, so that any Node can run it. package.json names the same Node under `engines`.
 */
import { existsSync } from 'node:fs';

const [major, minor] = process.versions.node.split('.').map(Number);
const isTypeScript = existsSync(new URL('../src/cli/main.ts', import.meta.url));

// 23 came before 22.18: 23.0 to 23.5 are new enough, but run no TypeScript. The package is compiled to JavaScript.
if (major < 22 || (major === 22 && minor < 18) || (isTypeScript && !process.features.typescript)) {
  const needed = `masked-logins needs Node 22.18 or newer${isTypeScript ? ' to run its TypeScript' : ''}`;
  const advice = isTypeScript
    ? '. For npm run, npm ci brings one, unless --omit=dev or --ignore-scripts keeps it out.'
    : '';
  console.error(`${needed}; this is ${process.version}${advice}`);
  process.exit(1);
}

try {
  import.meta.resolve('commander');
} catch {
  console.error('The dependencies of masked-logins are not installed: run npm ci.');
  process.exit(1);
}
