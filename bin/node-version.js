/**
 * Ends the process where this Node cannot run the project's TypeScript, which it would only call
 * ERR_UNKNOWN_FILE_EXTENSION. Plain JavaScript, so that any Node can say so. package.json says the same under `engines`.
 */
const [major, minor] = process.versions.node.split('.').map(Number);

// 23 came before 22.18, and 23.0 to 23.5 run none either: they say so by this feature.
if (major < 22 || (major === 22 && minor < 18) || !process.features.typescript) {
  console.error(
    `masked-logins needs Node 22.18 or newer to run its TypeScript; this is ${process.version}. ` +
      'For npm run, npm ci brings one, unless --omit=dev or --ignore-scripts keeps it out.',
  );
  process.exit(1);
}
