/** The environment of commands on a local stack. This is the only file of `local/` that reads `process.env`. */
import path from 'node:path';
import type { QueueSettings } from '../src/config.ts';
import type { StackLogin } from './stack/logins.ts';
import { readStackFile, type StackFile } from './stack/state.ts';

/** The script of the command `masked-logins` in this checkout. */
export const MASKED_LOGINS = path.join(import.meta.dirname, '../bin/masked-logins.js');

/** The directory of the local stack: `LOCAL_DIR`, or `.local` if that is not set. */
export function localDirectory(): string {
  return path.resolve(process.env['LOCAL_DIR'] || '.local');
}

/** The environment for a child process: these variables, and those that every process needs. */
export function childEnvironment(variables: Record<string, string>): NodeJS.ProcessEnv {
  const { PATH, HOME, TMPDIR, LANG, TERM } = process.env;
  const base = Object.entries({ PATH, HOME, TMPDIR, LANG, TERM }).filter(([, value]) => value !== undefined);
  return { ...Object.fromEntries(base), ...variables };
}

/** The database of a stack and its key-encryption key, as settings. */
export function databaseSettings(stack: StackFile, login: StackLogin): Record<string, string> {
  return { DATABASE_URL: stack.urls[login], MASKING_KEK_FILE: stack.kekFile };
}

/** The emulator accepts any credentials, but the SDK does not work without any. */
const CREDENTIALS = { accessKeyId: 'local', secretAccessKey: 'local' };

/** The queue of a stack. */
export function queueOf({ queueUrl, endpoint, region }: StackFile): QueueSettings {
  return { url: queueUrl, endpoint, region, credentials: CREDENTIALS };
}

/** The same as settings. */
export function queueSettings(stack: StackFile): Record<string, string> {
  return {
    SQS_QUEUE_URL: stack.queueUrl,
    AWS_ENDPOINT_URL_SQS: stack.endpoint,
    AWS_REGION: stack.region,
    AWS_ACCESS_KEY_ID: CREDENTIALS.accessKeyId,
    AWS_SECRET_ACCESS_KEY: CREDENTIALS.secretAccessKey,
  };
}

/**
 * Adds the settings of a running stack to the environment of this process, if they are missing there.
 *
 * @param login whose connection string `DATABASE_URL` becomes
 * @returns the settings that were added
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
    // The SDK prefers a profile's credentials.
    for (const name of ['AWS_PROFILE', 'AWS_SESSION_TOKEN']) delete process.env[name];
    Object.assign(filled, queueSettings(stack));
  }
  Object.assign(process.env, filled);
  return filled;
}
