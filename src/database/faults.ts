import { codeOf } from '../errors.ts';

const BAD_LOGIN = 'Postgres refuses the login: check user and password in DATABASE_URL, and pg_hba.conf';
const NO_DATABASE = 'the database that DATABASE_URL names does not exist: check its name, or create it';
const NOT_ALLOWED =
  'the login in DATABASE_URL lacks a right that this process needs: grant it logins_loader or logins_worker, as the process is';
const NOT_MIGRATED = 'the database is not migrated, or not to this version: run npm run migrate';
const BAD_CERTIFICATE =
  "Postgres's TLS certificate is not trusted: give its CA in DATABASE_URL (sslrootcert) or in NODE_EXTRA_CA_CERTS";

/** By SQLSTATE, or by Node's code for what failed before Postgres could answer. */
const FAULTS = new Map([
  ['28P01', BAD_LOGIN],
  ['28000', BAD_LOGIN],
  ['3D000', NO_DATABASE],
  ['42501', NOT_ALLOWED],
  ['42P01', NOT_MIGRATED],
  ['42883', NOT_MIGRATED],
  ['42703', NOT_MIGRATED],
  ['3F000', NOT_MIGRATED],
  ['SELF_SIGNED_CERT_IN_CHAIN', BAD_CERTIFICATE],
  ['DEPTH_ZERO_SELF_SIGNED_CERT', BAD_CERTIFICATE],
  ['UNABLE_TO_VERIFY_LEAF_SIGNATURE', BAD_CERTIFICATE],
  ['UNABLE_TO_GET_ISSUER_CERT_LOCALLY', BAD_CERTIFICATE],
  ['ERR_TLS_CERT_ALTNAME_INVALID', BAD_CERTIFICATE],
  ['CERT_HAS_EXPIRED', BAD_CERTIFICATE],
]);

/** Errors of `pg`'s own that have no code; the texts are fixed strings of the driver. */
const DRIVER_FAULTS: [RegExp, string][] = [
  [
    /password must be a(?: non-empty)? string/,
    'Postgres asks for a password, and DATABASE_URL has none: add it',
  ],
  [
    /does not support SSL/,
    'Postgres does not speak TLS here: leave sslmode out of DATABASE_URL, or switch TLS on',
  ],
];

/**
 * What to tell a person about an error of Postgres that, if it stays, no retry heals. A restarting server may give
 * some of these for a moment, and a password may be in the middle of a change: only at start-up is the first one
 * proof; later, a few in a row.
 *
 * @param error whatever `pg` threw
 * @returns one line that says what is wrong and what to do; undefined for what heals by itself: a server that is
 *   away, starting up, or full
 */
export function fatalDatabaseFault(error: unknown): string | undefined {
  const code = codeOf(error);
  if (code !== undefined) return FAULTS.get(code);
  if (!(error instanceof Error)) return undefined;
  return DRIVER_FAULTS.find(([text]) => text.test(error.message))?.[1];
}
