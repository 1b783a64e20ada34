/** The environment of commands that run on a local stack. This is the one file of `local/` that reads `process.env`. */
import path from 'node:path';
import type { StackLogin } from './stack/logins.ts';
import { readStackFile, type StackFile } from './stack/state.ts';

/** The command `masked-logins` of this checkout, for Node to run. */
export const MASKED_LOGINS = path.join(import.meta.dirname, '../bin/masked-logins.js');

/** The directory of the local stack: `LOCAL_DIR`, or `.local` if that is not set. */
export function localDirectory(): string {
  return path.resolve(process.env['LOCAL_DIR'] || '.local');
}

/** The environment for a child process that must see only what is passed here, besides what every process needs. */
export function childEnvironment(variables: Record<string, string>): NodeJS.ProcessEnv {
  const { PATH, HOME, TMPDIR, LANG, TERM } = process.env;
  const base = Object.entries({ PATH, HOME, TMPDIR, LANG, TERM }).filter(([, value]) => value !== undefined);
  return { ...Object.fromEntries(base), ...variables };
}

/** The database of a stack, as settings: it goes with the stack's key-encryption key, and with no other. */
export function databaseSettings(stack: StackFile, login: StackLogin): Record<string, string> {
  return { DATABASE_URL: stack.urls[login], MASKING_KEK_FILE: stack.kekFile };
}

/** The queue of a stack, as settings. */
export function queueSettings(stack: StackFile): Record<string, string> {
  return {
    SQS_QUEUE_URL: stack.queueUrl,
    AWS_ENDPOINT_URL_SQS: stack.endpoint,
    AWS_REGION: stack.region,
    // The emulator takes any credentials; the SDK refuses to send none.
    AWS_ACCESS_KEY_ID: 'local',
    AWS_SECRET_ACCESS_KEY: 'local',
  };
}

/**
 * Fills in, in the environment of this process, the settings that are missing and that a running stack knows.
 *
 * @param login whose connection string `DATABASE_URL` becomes
 * @returns what it has filled in
 * @throws {SettingError} if the stack's file cannot be read
 */
export function fillSettings(login: StackLogin): Record<string, string> {
  const stack = readStackFile(localDirectory());
  if (stack === undefined) return {};
  const filled: Record<string, string> = {};
  if (!process.env['DATABASE_URL']) {
    Object.assign(filled, databaseSettings(stack, login));
    if (process.env['MASKING_KEK'] || process.env['MASKING_KEK_FILE']) delete filled['MASKING_KEK_FILE'];
  }
  if (!process.env['SQS_QUEUE_URL']) {
    // The SDK would take a profile's credentials before these.
    for (const name of ['AWS_PROFILE', 'AWS_SESSION_TOKEN']) delete process.env[name];
    Object.assign(filled, queueSettings(stack));
  }
  return Object.assign(process.env, filled) && filled;
}
