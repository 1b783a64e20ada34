import pg from 'pg';

/** The SQLSTATE that a call fails with, or `none` if it succeeds. Tests compare codes, never messages. */
export async function sqlstate(call: Promise<unknown>): Promise<string> {
  const error = await failure(call);
  return error === undefined ? 'none' : (error.code ?? 'no code');
}

/** The error that Postgres returns, or undefined if the call succeeds. */
export async function failure(call: Promise<unknown>): Promise<pg.DatabaseError | undefined> {
  try {
    await call;
    return undefined;
  } catch (error) {
    if (error instanceof pg.DatabaseError) return error;
    throw error;
  }
}

/** All fields of an error, as one text to search. */
export function everythingIn(error: object | undefined): string {
  return JSON.stringify({ ...error, text: String(error) });
}
