import pg from 'pg';
import { codeOf, type Fault, LOCK_NOT_AVAILABLE } from '../errors.ts';
import {
  byCode,
  faultAt,
  knownFaults,
  NO_ANSWER_CODES,
  UNTRUSTED_CERTIFICATE_CODES,
  type KnownFault,
} from '../known-faults.ts';

/** What is known about a connection when an error occurs. */
export interface DatabaseSituation {
  /** `host:port/database`; see `databaseAt`. */
  at?: string | undefined;
  /** The roles, one of which the command needs: `logins_loader`. */
  roles?: string | undefined;
}

const { fatal, passing } = knownFaults<DatabaseSituation>();

const NO_TLS = fatal(
  (at) =>
    `Postgres at ${at} does not support TLS, which sslmode in DATABASE_URL requires: enable TLS in the server, or remove sslmode`,
);
const TLS_FAILED = passing(
  (at) => `TLS with Postgres at ${at} fails: check sslmode, sslrootcert, sslcert and sslkey in DATABASE_URL`,
);
const NO_ANSWER = passing(
  (at) => `Postgres at ${at} does not answer: check host and port in DATABASE_URL, and the firewall`,
);
const CONNECTION_LOST = passing(
  (at) => `the connection to Postgres at ${at} was lost: Postgres is restarting, or the network failed`,
);

/** By SQLSTATE, or by Node's code if the error occurred before Postgres answered. */
const FAULTS = byCode(
  [
    fatal(
      (at) => `Postgres at ${at} refuses the login: check user and password in DATABASE_URL, and pg_hba.conf`,
    ),
    '28P01',
    '28000',
  ],
  [fatal((at) => `there is no database ${at}: check its name in DATABASE_URL, or create it`), '3D000'],
  [
    fatal(
      (at, { roles = 'the role of its process, such as logins_loader or logins_worker' }) =>
        `the login in DATABASE_URL may not do this in ${at}: as the login that migrated, grant it ${roles}`,
    ),
    '42501',
  ],
  [
    fatal((at) => `the database ${at} is not migrated, or not to this version: run: masked-logins migrate`),
    '42P01',
    '42883',
    '42703',
    '3F000',
  ],
  [
    fatal(
      (at) =>
        `the server at ${at} refuses the connection. A pooler does so if it does not support a parameter of DATABASE_URL (PgBouncer: options=, unless it is in ignore_startup_parameters) or does not know the database: see its log`,
    ),
    '08P01',
  ],
  [
    fatal((at) => `the database ${at} cannot store a character: masked-logins needs the encoding UTF8`),
    '22P05',
  ],
  [
    passing(
      (at) => `Postgres at ${at} is read-only, for example a standby: set DATABASE_URL to the primary server`,
    ),
    '25006',
  ],
  [passing((at) => `the disk of Postgres at ${at} is full: free some space`), '53100'],
  [passing((at) => `Postgres at ${at} is out of memory`), '53200'],
  [
    passing(
      (at) =>
        `Postgres at ${at} has no free connection: close some, or raise max_connections or the login's CONNECTION LIMIT`,
    ),
    '53300',
  ],
  [
    passing(
      (at) => `another session holds a lock in ${at} for too long: pg_stat_activity shows which session`,
    ),
    LOCK_NOT_AVAILABLE,
  ],
  [
    passing(
      (at) => `a statement in ${at} was cancelled, by a person or because statement_timeout is too short`,
    ),
    '57014',
  ],
  [passing((at) => `Postgres at ${at} is starting up or shutting down: wait a moment`), '57P03'],
  [CONNECTION_LOST, '57P01', '57P02', '57P05', 'ECONNRESET', 'EPIPE'],
  [
    passing((at) => `nothing listens at ${at}: start Postgres there, or check host and port in DATABASE_URL`),
    'ECONNREFUSED',
  ],
  [passing((at) => `the host of ${at} has no address: check its name in DATABASE_URL`), 'ENOTFOUND'],
  [
    passing((at) => `the name of the host of ${at} cannot be looked up now: check the network and its DNS`),
    'EAI_AGAIN',
  ],
  [NO_ANSWER, ...NO_ANSWER_CODES],
  [
    passing(
      (at) =>
        `a socket of Postgres or a certificate file for ${at} does not exist: start Postgres, or check host= and sslrootcert= in DATABASE_URL`,
    ),
    'ENOENT',
  ],
  [
    passing((at) => `this user may not read the socket or a certificate file for ${at}: check its mode`),
    'EACCES',
  ],
  [
    fatal(
      (at) =>
        `the TLS certificate of Postgres at ${at} is not trusted: set sslrootcert=… in DATABASE_URL, or NODE_EXTRA_CA_CERTS, to the file of its CA`,
    ),
    ...UNTRUSTED_CERTIFICATE_CODES,
  ],
  [
    fatal(
      (at) =>
        `the TLS certificate of Postgres at ${at} is for another host: in DATABASE_URL, use the name in the certificate`,
    ),
    'ERR_TLS_CERT_ALTNAME_INVALID',
  ],
  [fatal((at) => `the TLS certificate of Postgres at ${at} has expired: renew it`), 'CERT_HAS_EXPIRED'],
  [
    fatal((at) => `the TLS certificate of Postgres at ${at} is not valid yet: check this machine's clock`),
    'CERT_NOT_YET_VALID',
  ],
  [
    fatal(() => 'a certificate file in DATABASE_URL contains no certificate or key in PEM form'),
    'ERR_OSSL_PEM_NO_START_LINE',
  ],
);

/** Errors of `pg` itself, which have no code. The texts are fixed strings of the driver. */
const DRIVER_FAULTS: [RegExp, KnownFault<DatabaseSituation>][] = [
  [
    /password must be a(?: non-empty)? string/,
    fatal((at) => `Postgres at ${at} asks for a password, and DATABASE_URL has none: add it`),
  ],
  [/does not support SSL/, NO_TLS],
  [/error establishing an SSL connection|invalid response .*SSL/i, TLS_FAILED],
  [
    /connection timeout|timeout exceeded when trying to connect|timeout expired|Query read timeout/,
    NO_ANSWER,
  ],
  [/^Connection terminated|connection error and is not queryable|Client was closed/, CONNECTION_LOST],
];

/**
 * What to tell a person about an error of Postgres, and whether no retry can fix it if it stays. A server that is
 * restarting, or a password that is being changed, may cause a fatal one for a moment. So only the first attempt of a
 * process can rely on it; later, several must occur in a row.
 *
 * @param error any error of `pg`
 * @returns one line that says what is wrong with what and what to do; undefined if the error is not known here
 */
export function databaseFault(error: unknown, situation: DatabaseSituation = {}): Fault | undefined {
  const { at = 'the address in DATABASE_URL' } = situation;
  const known = knownFaultOf(error);
  if (known !== undefined) return faultAt(known, at, situation);
  if (!(error instanceof pg.DatabaseError) || error.code === undefined) return undefined;
  // Messages of our own SQLSTATEs are for people, and contain no values.
  if (error.code.startsWith('ML')) return { text: messageOf(error), fatal: false };
  return {
    text: `Postgres at ${at} answers with SQLSTATE ${error.code}: see its log, and appendix A of its manual`,
    fatal: false,
  };
}

function knownFaultOf(error: unknown): KnownFault<DatabaseSituation> | undefined {
  const code = codeOf(error);
  if (code === undefined)
    return error instanceof Error ? DRIVER_FAULTS.find(([text]) => text.test(error.message))?.[1] : undefined;
  return FAULTS.get(code) ?? (/^ERR_(?:SSL|TLS|OSSL)|^EPROTO$/.test(code) ? TLS_FAILED : undefined);
}

/**
 * The same for an error while migrating. Such an error is about definitions and not about rows, so its message and hint
 * may be shown. Its detail may contain a row.
 */
export function migrationFault(error: unknown, at: string): Fault | undefined {
  // These classes are about the connection.
  const isAboutDefinitions =
    error instanceof pg.DatabaseError && !/^(?:08|28|3D|53|57)/.test(error.code ?? '');
  return isAboutDefinitions
    ? { text: `the database ${at} could not be migrated: ${messageOf(error)}`, fatal: true }
    : databaseFault(error, { at });
}

function messageOf(error: pg.DatabaseError): string {
  const hint = error.hint === undefined ? '' : `. ${error.hint}`;
  return `${error.message}${hint} [SQLSTATE ${error.code}]`;
}
