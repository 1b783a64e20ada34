/**
 * Connection strings, checked once, at start. A string that passes means the same to the driver as to libpq. Logs and
 * messages may show only `display`.
 */
import { readFileSync } from 'node:fs';
import pg from 'pg';
import { SettingError } from '../errors.ts';

/** A database, and the login that connects to it. */
export interface DatabaseSettings {
  /** For the driver. It contains the password: never show it. */
  url: string;
  /** `host:port/database`, for people. */
  display: string;
}

/** The modes of libpq that request TLS. In each of them, the driver verifies the certificate and the host's name. */
const TLS_MODES = ['allow', 'prefer', 'require', 'verify-ca', 'verify-full'];
const SSL_MODES = ['disable', 'no-verify', ...TLS_MODES];
const FILES = ['sslrootcert', 'sslcert', 'sslkey'];

const ENCODE =
  'must percent-encode special characters in user, password, database and parameters: ' +
  '% as %25, @ as %40, / as %2F, ? as %3F, # as %23, a space as %20';

/**
 * Checks a connection string in libpq's URL format.
 *
 * @param given such as `postgres://user:password@host:5432/database?sslmode=verify-full`
 * @throws {SettingError} that says what is wrong and quotes nothing of it
 */
export function databaseAt(given: string): DatabaseSettings {
  const parts = /^postgres(?:ql)?:\/\/([^/?]*)(?:\/([^?]*))?(?:\?(.*))?$/is.exec(given);
  if (parts === null) throw new SettingError('must be a URL that begins with postgres:// or postgresql://');
  const [, authority = '', database = '', query = ''] = parts;
  requireEncoded(given, authority, [database, query]);

  const params = new URLSearchParams(query);
  const host = authority.slice(authority.indexOf('@') + 1);
  requireOneHost(host, params);
  if (database === '')
    throw new SettingError('must name a database: postgres://user:password@host:5432/database');
  // The driver does not decode these, and would look for a database with another name.
  if (decodeURI(database) !== decodeURIComponent(database))
    throw new SettingError('names a database with a character that the driver does not support');

  settleTls(params);
  // Neither WHATWG URLs nor the driver support a port without a host.
  const alone = /^:(\d+)$/.exec(host);
  if (alone !== null) params.set('port', alone[1]!);
  const place = alone === null ? authority : authority.slice(0, -host.length);
  const rest = params.size === 0 ? '' : `?${params.toString().replaceAll('+', '%20')}`;
  const url = `postgres://${place}/${database}${rest}`;
  return { url, display: displayOf(url) };
}

function requireEncoded(given: string, authority: string, rest: string[]): void {
  // A character that is not encoded ends its part too early: the host would be a piece of the password.
  const isCutShort =
    given.includes('#') || authority.split('@').length > 2 || rest.some((part) => part.includes('@'));
  // oxlint-disable-next-line no-control-regex
  if (isCutShort || /[\s\u0000-\u001f\u007f]|%(?![0-9a-f]{2})/i.test(given)) throw new SettingError(ENCODE);
  let decoded: string;
  try {
    decoded = decodeURIComponent(given);
  } catch {
    throw new SettingError('contains percent-encoded bytes that are not UTF-8');
  }
  // oxlint-disable-next-line no-control-regex
  if (/[\u0000-\u001f\u007f]/.test(decoded)) throw new SettingError('contains a control character');
}

function requireOneHost(host: string, params: URLSearchParams): void {
  if ([host, params.get('host'), params.get('port')].some((part) => part?.includes(',')))
    throw new SettingError(
      'names several hosts: set one, such as an address that always leads to the writable server',
    );
  const port = params.get('port') ?? /:([^:\]]*)$/.exec(host)?.[1] ?? '';
  if (port !== '' && !(/^\d{1,5}$/.test(port) && Number(port) >= 1 && Number(port) <= 65_535))
    throw new SettingError(
      `names a port that is not a number from 1 to 65535; if that is a piece of the password, it ${ENCODE}`,
    );
}

/** Sets `sslmode` to what the driver does anyway, and checks that the certificate files can be read. */
function settleTls(params: URLSearchParams): void {
  const mode = params.get('sslmode');
  if (mode !== null && !SSL_MODES.includes(mode))
    throw new SettingError(`has an sslmode that is not one of ${SSL_MODES.join(', ')}`);
  // The well-known authorities, which the driver uses if no file is named.
  if (params.get('sslrootcert') === 'system') {
    params.delete('sslrootcert');
    params.set('sslmode', 'verify-full');
  } else if (mode !== null && TLS_MODES.includes(mode) && !params.has('uselibpqcompat')) {
    params.set('sslmode', 'verify-full');
  }
  for (const name of FILES) {
    const file = params.get(name);
    if (file === null) continue;
    try {
      readFileSync(file);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      const fault = code === 'ENOENT' ? 'does not exist' : `cannot be read (${code})`;
      // Without its name: of a connection string, only host, port and database are shown.
      throw new SettingError(`names a file as ${name} that ${fault}`);
    }
  }
}

/** Where the driver connects to, including what the connection string leaves out. */
function displayOf(url: string): string {
  let target: pg.Client;
  try {
    target = new pg.Client({ connectionString: url });
  } catch {
    // The driver's errors may quote the string.
    throw new SettingError(
      'is not understood by the driver: check host, port, sslmode, sslnegotiation and the files in it',
    );
  }
  const host = target.host.includes(':') ? `[${target.host}]` : target.host;
  return `${host}:${target.port}/${target.database}`;
}
