import { randomBytes } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { SettingError } from '../../src/errors.ts';
import { writeSecretFile } from '../../src/secret-file.ts';
import { randomPassword, randomPasswords, type Passwords, type StackLogin } from './logins.ts';

/** What a stack must know again to come back with the same data: `LOCAL_DIR/state.json`. */
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

/** The files of a stack, all in its directory. */
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
 * Takes a stack's directory for this process, until `release` or the end of the process, however it ends: the
 * lock is the operating system's, on a file, and needs no check of process ids that may have been given to others.
 *
 * @throws {SettingError} where another stack has it
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

/** Reads what an earlier run left, or makes up what a first one needs. */
export function readState(file: string): StackState {
  if (!existsSync(file)) return { superuserPassword: randomPassword(), passwords: randomPasswords() };
  return JSON.parse(readFileSync(file, 'utf8')) as StackState;
}

/** The key-encryption key, 32 random bytes in hex, made once: without it nothing that was masked can be unmasked. */
export function ensureKek(file: string): void {
  if (!existsSync(file)) writeSecretFile(file, `${randomBytes(32).toString('hex')}\n`);
}
