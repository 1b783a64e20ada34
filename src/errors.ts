/**
 * The failures that a caller can act on, and how errors of libraries are described.
 *
 * An error of `pg` contains values of rows (`detail`, `where`, `internalQuery`), and the message of an error of SQS may
 * contain a receipt handle. So nothing here passes on a library's message: `describe` uses only its class and code.
 */

/** The exit code of a command that was called or configured wrongly. */
export const EXIT_USAGE = 2;

/** A setting is missing or out of range. The message names the variable, never its value. */
export class SettingError extends Error {
  override name = 'SettingError';
}

/** An error that no retry can fix. The message says what is wrong and what to do. */
export class FatalError extends Error {
  override name = 'FatalError';
}

/** Whether an error has a message for people already. */
export function isOurs(error: unknown): error is SettingError | FatalError {
  return error instanceof SettingError || error instanceof FatalError;
}

/** What to tell a person about an error. */
export interface Fault {
  /** One line that says what is wrong with what, and what to do. */
  text: string;
  /** Whether no retry can fix it, if it stays. */
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

/** Postgres's SQLSTATE for a lock that was not available within `lock_timeout`. */
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
 * @returns the code, or undefined if the error has none
 */
export function codeOf(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null) return undefined;
  const { code, cause, errors } = error as CodedError;
  if (typeof code === 'string' && code !== '') return code;
  // Node tries each address of a host and throws all errors together.
  if (Array.isArray(errors) && errors.length > 0) return codeOf(errors[0]);
  if (cause !== undefined) return codeOf(cause);
  const { name, $metadata } = error as CodedError;
  return $metadata !== undefined && typeof name === 'string' ? name : undefined;
}

/**
 * Describes an error by its code, its HTTP status or its class, which contain no personal data.
 *
 * @param error anything that was thrown
 * @returns for instance `SQLSTATE 57P01`, `ECONNREFUSED`, `QueueDoesNotExist (HTTP 400)`
 */
export function describe(error: unknown): string {
  if (isOurs(error)) return error.message;
  const code = codeOf(error);
  const status = (error as CodedError | null)?.$metadata?.httpStatusCode;
  if (code !== undefined) {
    if (/^[0-9A-Z]{5}$/.test(code)) return `SQLSTATE ${code}`;
    return status === undefined ? code : `${code} (HTTP ${status})`;
  }
  if (error instanceof Error) {
    // A few errors of `pg` have no code. Their texts are fixed strings of the driver.
    if (/^Connection terminated|timeout exceeded when trying to connect/.test(error.message)) {
      return 'the connection was lost';
    }
    return error.name;
  }
  return 'an unknown error';
}

/**
 * The error to throw in place of a library's error.
 *
 * @param fault what is known about the error
 * @returns a `FatalError` with the fault's text; the error itself if it is ours, or nothing is known about it
 */
export function explained(error: unknown, fault: Fault | undefined): unknown {
  return isOurs(error) || fault === undefined ? error : new FatalError(fault.text);
}
