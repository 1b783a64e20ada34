import { randomBytes } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { SettingError } from '../errors.ts';
import { writeSecretFile } from '../secret-file.ts';
import { randomPassword, randomPasswords, type Passwords } from './logins.ts';

/** What a stack must know again to come back with the same data: `LOCAL_DIR/state.json`. */
export interface StackState {
  superuserPassword: string;
  passwords: Passwords;
  postgresPort?: number;
  emulatorPort?: number;
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

/** Reads what an earlier run left, or makes up what a first one needs. */
export function readState(file: string): StackState {
  if (!existsSync(file)) return { superuserPassword: randomPassword(), passwords: randomPasswords() };
  return JSON.parse(readFileSync(file, 'utf8')) as StackState;
}

/** The key-encryption key, 32 random bytes in hex, made once: without it nothing that was masked can be unmasked. */
export function ensureKek(file: string): void {
  if (!existsSync(file)) writeSecretFile(file, `${randomBytes(32).toString('hex')}\n`);
}
