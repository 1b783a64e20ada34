import pg from 'pg';

/** The SQLSTATE that a call fails with, or `none` where it succeeds: tests look at codes and never at words. */
export async function sqlstate(call: Promise<unknown>): Promise<string> {
  const error = await failure(call);
  return error === undefined ? 'none' : (error.code ?? 'no code');
}

/** Postgres's error, as a client gets it. */
export async function failure(call: Promise<unknown>): Promise<pg.DatabaseError | undefined> {
  try {
    await call;
    return undefined;
  } catch (error) {
    if (error instanceof pg.DatabaseError) return error;
    throw error;
  }
}

/** Everything that an error of Postgres carries, in one text to search. */
export function everythingIn(error: object | undefined): string {
  return JSON.stringify({ ...error, text: String(error) });
}
