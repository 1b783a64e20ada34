#!/usr/bin/env node
/**
 * `masked-logins COMMAND`: what runs in production. Plain JavaScript, so that an old Node says what it lacks.
 */
import './node-version.js';

const COMMANDS = ['load', 'worker', 'status', 'keys', 'migrate', 'send'];

const command = process.argv[2];
if (COMMANDS.includes(command)) {
  const file = new URL(`../src/cli/${command}.ts`, import.meta.url);
  // The command sees its own arguments, as if it had been started itself.
  process.argv.splice(1, 2, file.pathname);
  await import(file);
} else {
  const usage = `usage: masked-logins COMMAND [options], with ${COMMANDS.join(', ')} for COMMAND; COMMAND --help says more`;
  const isHelp = ['--help', '-h', 'help'].includes(command);
  (isHelp ? process.stdout : process.stderr).write(`${usage}\n`);
  process.exitCode = isHelp ? 0 : 2;
}
