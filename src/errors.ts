/**
 * The failures a caller can act on, and the only way an error of a library becomes text of ours.
 *
 * An error of `pg` carries values of rows (`detail`, `where`, `internalQuery`) and one of SQS may carry a
 * receipt handle in its message. So nothing here ever passes on a library's message: `describe` says what an
 * error is by its class and code alone.
 */

/** Exit code of a command that was called or configured wrongly. */
export const EXIT_USAGE = 2;

/** A setting is missing or out of range. The message names the variable; never its value. */
export class SettingError extends Error {
  override name = 'SettingError';
}

/** Something that no retry heals: the message says what it is and what to do. */
export class FatalError extends Error {
  override name = 'FatalError';
}

/** What to tell a person about an error. */
export interface Fault {
  /** One line that says what is wrong with what, and what to do. */
  text: string;
  /** Whether no retry heals it, if it stays. */
  fatal: boolean;
}

/** The SQLSTATEs of class ML that a command or task handles. docs/errors.md lists all of them. */
export const SQLSTATE = {
  sealed: 'ML001',
  wrongKek: 'ML002',
  alreadyUnsealed: 'ML003',
  keyInUse: 'ML006',
  noSuchKey: 'ML007',
  rotationNotDone: 'ML008',
  alreadySubmitted: 'ML011',
} as const;

/** Postgres's SQLSTATE for a lock that was waited for as long as `lock_timeout` lets wait. */
export const LOCK_NOT_AVAILABLE = '55P03';

interface CodedError {
  code?: unknown;
  name?: unknown;
  cause?: unknown;
  errors?: unknown;
  $metadata?: { httpStatusCode?: number };
}

/**
 * The code of an error: an SQLSTATE, a system error such as `ECONNREFUSED`, or the name of an SQS error.
 *
 * @param error anything that was thrown
 * @returns the code, or undefined where the error has none
 */
export function codeOf(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null) return undefined;
  const { code, cause, errors } = error as CodedError;
  if (typeof code === 'string' && code !== '') return code;
  // Node tries every address of a host and throws them together.
  if (Array.isArray(errors) && errors.length > 0) return codeOf(errors[0]);
  if (cause !== undefined) return codeOf(cause);
  const { name, $metadata } = error as CodedError;
  return $metadata !== undefined && typeof name === 'string' ? name : undefined;
}

/**
 * What an error is, in words that cannot hold a value of anybody's: its code, its HTTP status, or its class.
 *
 * @param error anything that was thrown
 * @returns for instance `SQLSTATE 57P01`, `ECONNREFUSED`, `QueueDoesNotExist (HTTP 400)`
 */
export function describe(error: unknown): string {
  if (error instanceof SettingError || error instanceof FatalError) return error.message;
  const code = codeOf(error);
  const status = (error as CodedError | null)?.$metadata?.httpStatusCode;
  if (code !== undefined) {
    if (/^[0-9A-Z]{5}$/.test(code)) return `SQLSTATE ${code}`;
    return status === undefined ? code : `${code} (HTTP ${status})`;
  }
  if (error instanceof Error) {
    // `pg` has a few errors without a code; their texts are fixed strings of the driver's own.
    if (/^Connection terminated|timeout exceeded when trying to connect/.test(error.message)) {
      return 'the connection was lost';
    }
    return error.name;
  }
  return 'an unknown error';
}
