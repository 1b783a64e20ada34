import pg from 'pg';
import { codeOf, type Fault, LOCK_NOT_AVAILABLE } from '../errors.ts';
import { knownFaults, type KnownFault } from '../known-faults.ts';

/** What is known about a connection when something goes wrong with it. */
export interface DatabaseSituation {
  /** `host:port/database`; see `databaseAt`. */
  at?: string | undefined;
  /** The roles, each of which would do for what is being done: `logins_loader`. */
  roles?: string | undefined;
}

const { fatal, passing } = knownFaults<DatabaseSituation>();

const BAD_LOGIN = fatal(
  (at) => `Postgres at ${at} refuses the login: check user and password in DATABASE_URL, and pg_hba.conf`,
);
const NO_PASSWORD = fatal((at) => `Postgres at ${at} asks for a password, and DATABASE_URL has none: add it`);
const NOT_ALLOWED = fatal(
  (at, { roles = 'the role of its process, such as logins_loader or logins_worker' }) =>
    `the login in DATABASE_URL may not do this in ${at}: as the login that migrated, grant it ${roles}`,
);
const NOT_MIGRATED = fatal(
  (at) => `the database ${at} is not migrated, or not to this version: run: masked-logins migrate`,
);
const BAD_CERTIFICATE = fatal(
  (at) =>
    `the TLS certificate of Postgres at ${at} is not trusted: name the file of its CA in DATABASE_URL (sslrootcert=…) or in NODE_EXTRA_CA_CERTS`,
);
const OTHER_HOST = fatal(
  (at) =>
    `the TLS certificate of Postgres at ${at} is for another host: use the name that it is for in DATABASE_URL`,
);
const NO_TLS = fatal(
  (at) =>
    `Postgres at ${at} does not speak TLS, which sslmode in DATABASE_URL asks for: switch TLS on in the server, or leave sslmode out`,
);
const TLS_FAILED = passing(
  (at) => `TLS with Postgres at ${at} fails: check sslmode, sslrootcert, sslcert and sslkey in DATABASE_URL`,
);
const NO_ANSWER = passing(
  (at) =>
    `Postgres at ${at} does not answer: check host and port in DATABASE_URL, and the firewall on the way`,
);
const CUT = passing(
  (at) => `Postgres at ${at} closed the connection: it is restarting, or something on the way cut it`,
);

/** By SQLSTATE, or by Node's code for what failed before Postgres could answer. */
const FAULTS = new Map([
  ['28P01', BAD_LOGIN],
  ['28000', BAD_LOGIN],
  ['3D000', fatal((at) => `there is no database ${at}: check its name in DATABASE_URL, or create it`)],
  ['42501', NOT_ALLOWED],
  ['42P01', NOT_MIGRATED],
  ['42883', NOT_MIGRATED],
  ['42703', NOT_MIGRATED],
  ['3F000', NOT_MIGRATED],
  [
    '08P01',
    fatal(
      (at) =>
        `what answers at ${at} refuses the connection, as poolers do that do not take a parameter of DATABASE_URL (PgBouncer: options=, unless in ignore_startup_parameters) or do not know the database: its log says which`,
    ),
  ],
  [
    '22P05',
    fatal(
      (at) =>
        `the database ${at} cannot hold some character: masked-logins needs one that is encoded in UTF8`,
    ),
  ],
  [
    '25006',
    passing(
      (at) =>
        `Postgres at ${at} takes no writes: it is a standby, or read-only; name the primary server in DATABASE_URL`,
    ),
  ],
  ['53100', passing((at) => `the disk of Postgres at ${at} is full: make room`)],
  ['53200', passing((at) => `Postgres at ${at} is out of memory`)],
  [
    '53300',
    passing(
      (at) =>
        `Postgres at ${at} has no connection left: close some, or raise max_connections or the login's CONNECTION LIMIT`,
    ),
  ],
  [
    LOCK_NOT_AVAILABLE,
    passing(
      (at) => `a lock in ${at} is held by somebody else for too long: pg_stat_activity there says by whom`,
    ),
  ],
  [
    '57014',
    passing((at) => `a statement in ${at} was cancelled: somebody did, or statement_timeout is too short`),
  ],
  ['57P01', CUT],
  ['57P02', CUT],
  ['57P03', passing((at) => `Postgres at ${at} is starting up or shutting down: wait a moment`)],
  ['57P05', CUT],
  [
    'ECONNREFUSED',
    passing((at) => `nothing listens at ${at}: start Postgres there, or check host and port in DATABASE_URL`),
  ],
  ['ENOTFOUND', passing((at) => `the host of ${at} has no address: check its name in DATABASE_URL`)],
  [
    'EAI_AGAIN',
    passing(
      (at) => `the name of the host of ${at} cannot be looked up just now: check the network and its DNS`,
    ),
  ],
  ['ETIMEDOUT', NO_ANSWER],
  ['EHOSTUNREACH', NO_ANSWER],
  ['ENETUNREACH', NO_ANSWER],
  ['EHOSTDOWN', NO_ANSWER],
  ['ECONNRESET', CUT],
  ['EPIPE', CUT],
  [
    'ENOENT',
    passing(
      (at) =>
        `there is no socket of Postgres, or no certificate file, for ${at}: start Postgres, or check host= and sslrootcert= in DATABASE_URL`,
    ),
  ],
  [
    'EACCES',
    passing(
      (at) => `the socket or a certificate file for ${at} may not be read by this user: check its mode`,
    ),
  ],
  ['SELF_SIGNED_CERT_IN_CHAIN', BAD_CERTIFICATE],
  ['DEPTH_ZERO_SELF_SIGNED_CERT', BAD_CERTIFICATE],
  ['UNABLE_TO_VERIFY_LEAF_SIGNATURE', BAD_CERTIFICATE],
  ['UNABLE_TO_GET_ISSUER_CERT', BAD_CERTIFICATE],
  ['UNABLE_TO_GET_ISSUER_CERT_LOCALLY', BAD_CERTIFICATE],
  ['CERT_UNTRUSTED', BAD_CERTIFICATE],
  ['ERR_TLS_CERT_ALTNAME_INVALID', OTHER_HOST],
  ['CERT_HAS_EXPIRED', fatal((at) => `the TLS certificate of Postgres at ${at} has expired: renew it`)],
  [
    'CERT_NOT_YET_VALID',
    fatal((at) => `the TLS certificate of Postgres at ${at} is not valid yet: check this machine's clock`),
  ],
  [
    'ERR_OSSL_PEM_NO_START_LINE',
    fatal(() => 'a certificate file that DATABASE_URL names holds no certificate or key in PEM form'),
  ],
]);

/** Errors of `pg`'s own that have no code; the texts are fixed strings of the driver. */
const DRIVER_FAULTS: [RegExp, KnownFault<DatabaseSituation>][] = [
  [/password must be a(?: non-empty)? string/, NO_PASSWORD],
  [/does not support SSL/, NO_TLS],
  [/error establishing an SSL connection|invalid response .*SSL/i, TLS_FAILED],
  [
    /connection timeout|timeout exceeded when trying to connect|timeout expired|Query read timeout/,
    NO_ANSWER,
  ],
  [/^Connection terminated|connection error and is not queryable|Client was closed/, CUT],
];

/**
 * What to tell a person about an error of Postgres, and whether it is one that no retry heals if it stays. A
 * restarting server may give some of those for a moment, and a password may be in the middle of a change: only at
 * start-up is the first one proof; later, a few in a row.
 *
 * @param error whatever `pg` threw
 * @returns one line that says what is wrong with what and what to do; undefined for an error that is not known here
 */
export function databaseFault(error: unknown, situation: DatabaseSituation = {}): Fault | undefined {
  const { at = 'the address in DATABASE_URL' } = situation;
  const code = codeOf(error);
  const known =
    code === undefined
      ? error instanceof Error
        ? DRIVER_FAULTS.find(([text]) => text.test(error.message))?.[1]
        : undefined
      : FAULTS.get(code);
  if (known !== undefined) return { text: known.text(at, situation), fatal: known.fatal };
  if (code !== undefined && /^ERR_(?:SSL|TLS|OSSL)|^EPROTO$/.test(code))
    return { text: TLS_FAILED.text(at, situation), fatal: false };
  if (!(error instanceof pg.DatabaseError) || code === undefined) return undefined;
  // Our own SQLSTATEs come with messages for people, which hold no value of anybody.
  if (code.startsWith('ML')) return { text: messageOf(error), fatal: false };
  return {
    text: `Postgres at ${at} answers with SQLSTATE ${code}: appendix A of its manual and its log say more`,
    fatal: false,
  };
}

/** The message and hint of an error that is about definitions, never about rows. */
export function messageOf(error: pg.DatabaseError): string {
  const hint = error.hint === undefined ? '' : `. ${error.hint}`;
  return `${error.message}${hint} [SQLSTATE ${error.code}]`;
}

/** The text of `databaseFault` where no retry heals the error; else undefined. */
export function fatalDatabaseFault(error: unknown, situation?: DatabaseSituation): string | undefined {
  const fault = databaseFault(error, situation);
  return fault?.fatal === true ? fault.text : undefined;
}
