import { event, type Body } from '../support/staging.ts';

/** A body to test: its name, a function that builds it around a mark, and its result. */
export interface Case {
  name: string;
  body: (mark: string) => Body;
  result: 'loaded' | 'quarantined';
}

const quarantined = (name: string, body: Case['body']): Case => ({ name, body, result: 'quarantined' });
const loaded = (name: string, body: Case['body']): Case => ({ name, body, result: 'loaded' });

const nested = (depth: number, mark: string): string =>
  `{"user_id":"${mark}","deep":${'['.repeat(depth)}${']'.repeat(depth)}}`;
const bytes = (...parts: (string | number[])[]): Uint8Array =>
  Buffer.concat(parts.map((part) => (typeof part === 'string' ? Buffer.from(part) : Buffer.from(part))));

/** Bodies that Postgres cannot read as JSON. */
export const UNREADABLE: Case[] = [
  quarantined('text that is not JSON', (mark) => `user ${mark} logged in`),
  quarantined('only spaces', () => '   '),
  quarantined('an empty body', () => ''),
  quarantined('truncated JSON', (mark) => `{"user_id":"${mark}"`),
  quarantined('two JSON texts in a row', (mark) => `{"user_id":"${mark}"} {}`),
  quarantined('a byte-order mark before JSON', (mark) => `\uFEFF{"user_id":"${mark}"}`),
  quarantined('an escaped NUL', (mark) => `{"user_id":"${mark}\\u0000"}`),
  quarantined('an escaped NUL in an unknown field', (mark) => `{"user_id":"${mark}","x":"\\u0000"}`),
  quarantined('a NUL byte', (mark) => bytes(`{"user_id":"${mark}`, [0], '"}')),
  quarantined('a lone surrogate', (mark) => `{"user_id":"${mark}","ip":"\\ud83d"}`),
  quarantined('a surrogate pair in reverse order', (mark) => `{"user_id":"${mark}","ip":"\\udc00\\ud83d"}`),
  quarantined('a number out of range', (mark) => `{"user_id":"${mark}","x":1e999999}`),
  quarantined('invalid UTF-8', (mark) => bytes(`{"user_id":"${mark}`, [0xff, 0xfe], '"}')),
  quarantined('a surrogate encoded in UTF-8', (mark) =>
    bytes(`{"user_id":"${mark}`, [0xed, 0xa0, 0x80], '"}'),
  ),
  quarantined('truncated UTF-8', (mark) => bytes(`{"user_id":"${mark}`, [0xe2, 0x82], '"}')),
  quarantined('an overlong encoding in UTF-8', (mark) => bytes(`{"user_id":"${mark}`, [0xc0, 0xaf], '"}')),
  quarantined('UTF-16', (mark) => Buffer.from(`{"user_id":"${mark}"}`, 'utf16le')),
  quarantined('arrays nested 100,000 deep', (mark) => nested(100_000, mark)),
  quarantined(
    'truncated arrays nested 100,000 deep',
    (mark) => `{"user_id":"${mark}","x":${'['.repeat(100_000)}`,
  ),
  quarantined(
    'objects nested 100,000 deep',
    (mark) => `${'{"a":'.repeat(100_000)}"${mark}"${'}'.repeat(100_000)}`,
  ),
];

/** JSON that is not a login event. */
export const NO_EVENT: Case[] = [
  quarantined('an array', (mark) => `[{"user_id":"${mark}"}]`),
  quarantined('a string', (mark) => `"${mark}"`),
  quarantined('a number', () => '42'),
  quarantined('true', () => 'true'),
  quarantined('null', () => 'null'),
  quarantined('an empty object', () => '{}'),
  quarantined('a message of another type', () => '{"foo":"oops_wrong_msg_type","bar":"123"}'),
  quarantined('an absent user_id', (mark) => event({ user_id: undefined, ip: mark })),
  quarantined('a user_id in different letter case', (mark) => event({ user_id: undefined, User_ID: mark })),
  quarantined('an empty user_id', (mark) => event({ user_id: '', ip: mark })),
  quarantined('a null user_id', (mark) => event({ user_id: null, ip: mark })),
  quarantined('a number as user_id', (mark) => event({ user_id: 42, ip: mark })),
  quarantined('a boolean as user_id', (mark) => event({ user_id: true, ip: mark })),
  quarantined('an object as user_id', (mark) => event({ user_id: { id: mark } })),
  quarantined('an array as user_id', (mark) => event({ user_id: [mark] })),
  quarantined('a user_id of 1 MiB', (mark) => event({ user_id: mark.padEnd(1_048_576, 'x') })),
  quarantined('an ip of 1 MiB', (mark) => event({ ip: mark.padEnd(1_048_576, 'x') })),
  quarantined(
    'duplicate keys, the last of which is invalid',
    (mark) => `{"user_id":"${mark}","user_id":null}`,
  ),
];

/** Unusual but valid login events. */
export const ODD: Case[] = [
  loaded('unknown fields', (mark) => event({ nobody: mark, 'user-agent': { a: [1, null, mark] } })),
  loaded('an unknown field of 1 MiB', (mark) => event({ x: mark.padEnd(1_048_576, 'x') })),
  loaded(
    'duplicate keys, the last of which is valid',
    (mark) => `{"user_id":null,"ip":"${mark}","user_id":"u"}`,
  ),
  loaded('whitespace around JSON', (mark) => ` \r\n\t${event({ ip: mark })}\n `),
  loaded('moderate nesting in an unknown field', (mark) => nested(500, 'u').replace('{', `{"ip":"${mark}",`)),
  loaded('characters outside the first plane', (mark) => event({ ip: `${mark}😀𝕏` })),
  loaded(
    'escaped characters outside the first plane',
    (mark) => `{"user_id":"u","ip":"${mark}\\ud83d\\ude00"}`,
  ),
  loaded('control characters and noncharacters', (mark) => event({ ip: `${mark}\u202e\uffff\u0001` })),
  loaded('backslashes and quotes', (mark) => event({ ip: `${mark}\\x41\\'"; --` })),
];

/** Every optional field with values of wrong types. */
export const WRONG_TYPES: Case[] = ['ip', 'device_id', 'device_type', 'locale', 'app_version'].flatMap(
  (field) =>
    [42, true, ['a'], { a: 1 }].map((value) =>
      quarantined(`${field}: ${JSON.stringify(value)}`, (mark) => event({ [field]: value, x: mark })),
    ),
);

/**
 * Every field at its length limit and one character above it. Where the limit counts bytes, also with
 * characters of two bytes; where it counts characters, also with characters of four bytes.
 */
export const LENGTHS: Case[] = [
  ...lengths('user_id', 128, 'a'),
  ...lengths('user_id', 128, '😀'),
  ...lengths('device_type', 32, 'a'),
  ...lengths('device_type', 32, '😀'),
  ...lengths('locale', 32, 'a'),
  ...lengths('locale', 32, '😀'),
  ...lengths('app_version', 64, 'a'),
  ...lengths('app_version', 64, '😀'),
  ...lengths('ip', 256, 'a'),
  ...lengths('ip', 128, 'é'),
  ...lengths('device_id', 256, 'a'),
  ...lengths('device_id', 128, 'é'),
];

function lengths(field: string, limit: number, character: string): Case[] {
  const of = (count: number) => (mark: string) => event({ [field]: character.repeat(count), x: mark });
  const unit = character === 'a' ? 'characters' : `${Buffer.byteLength(character)}-byte characters`;
  return [
    loaded(`${field} of ${limit} ${unit}`, of(limit)),
    quarantined(`${field} of ${limit + 1} ${unit}`, of(limit + 1)),
  ];
}

/** Every optional field without a value. */
export const ABSENT: Case[] = ['ip', 'device_id', 'device_type', 'locale', 'app_version'].flatMap((field) => [
  loaded(`null ${field}`, () => event({ [field]: null })),
  loaded(`absent ${field}`, () => event({ [field]: undefined })),
  loaded(`empty ${field}`, () => event({ [field]: '' })),
]);
