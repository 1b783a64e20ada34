import { randomBytes } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { SettingError } from '../../src/errors.ts';
import { writeSecretFile } from '../../src/secret-file.ts';
import { randomPassword, randomPasswords, type Passwords, type StackLogin } from './logins.ts';

/** What a stack needs to start again with the same data: `LOCAL_DIR/state.json`. */
export interface StackState {
  superuserPassword: string;
  passwords: Passwords;
  postgresPort?: number;
  emulatorPort?: number;
}

/** What `npm run stack` writes to `LOCAL_DIR/stack.json` (mode 0600). */
export interface StackFile {
  endpoint: string;
  region: string;
  queueUrl: string;
  deadLetterQueueUrl: string;
  kekFile: string;
  postgresLog: string;
  dataDirectory: string;
  urls: Record<StackLogin, string>;
}

/** The files in a stack's directory. */
export function stackPaths(localDir: string) {
  const file = (name: string) => path.join(localDir, name);
  return {
    lock: file('lock'),
    stack: file('stack.json'),
    state: file('state.json'),
    kek: file('kek'),
    postgresLog: file('postgres.log'),
    queue: file('queue'),
  };
}

/**
 * Locks a stack's directory until `release`, or until the process ends in any way. The lock is the operating
 * system's, on a file, so there is no need to check process ids, which may be reused.
 *
 * @throws {SettingError} if another stack has locked it
 */
export function lockDirectory(file: string): { release(): void } {
  const database = new DatabaseSync(file);
  try {
    database.exec('begin exclusive');
  } catch {
    database.close();
    throw new SettingError(
      `a stack is already running in ${path.dirname(file)}: stop it, or set LOCAL_DIR to another directory`,
    );
  }
  return { release: () => database.close() };
}

/**
 * The file of a running stack, or undefined if there is none.
 *
 * @throws {SettingError} if it cannot be read
 */
export function readStackFile(localDir: string): StackFile | undefined {
  try {
    return JSON.parse(readFileSync(stackPaths(localDir).stack, 'utf8')) as StackFile;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new SettingError(
      `LOCAL_DIR has a stack.json that cannot be read: stop the stack and start it again`,
    );
  }
}

/** Reads the state of an earlier run, or creates a new one. */
export function readState(file: string): StackState {
  if (!existsSync(file)) return { superuserPassword: randomPassword(), passwords: randomPasswords() };
  return JSON.parse(readFileSync(file, 'utf8')) as StackState;
}

/**
 * Creates the key-encryption key, 32 random bytes in hexadecimal, if there is none. Without it, nothing can be
 * revealed.
 */
export function ensureKek(file: string): void {
  if (!existsSync(file)) writeSecretFile(file, `${randomBytes(32).toString('hex')}\n`);
}
