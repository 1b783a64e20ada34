import { event, type Body } from '../support/staging.ts';

/** A body of the issue's table of bad input: what it is, how to make one that holds a mark, and where it must end. */
export interface Case {
  name: string;
  body: (mark: string) => Body;
  ends: 'loaded' | 'quarantined';
}

const quarantined = (name: string, body: Case['body']): Case => ({ name, body, ends: 'quarantined' });
const loaded = (name: string, body: Case['body']): Case => ({ name, body, ends: 'loaded' });

const nested = (depth: number, mark: string): string =>
  `{"user_id":"${mark}","deep":${'['.repeat(depth)}${']'.repeat(depth)}}`;
const bytes = (...parts: (string | number[])[]): Uint8Array =>
  Buffer.concat(parts.map((part) => (typeof part === 'string' ? Buffer.from(part) : Buffer.from(part))));

/** What cannot be read as JSON at all. */
export const UNREADABLE: Case[] = [
  quarantined('text that is no JSON', (mark) => `user ${mark} logged in`),
  quarantined('nothing but spaces', () => '   '),
  quarantined('no byte at all', () => ''),
  quarantined('JSON that breaks off', (mark) => `{"user_id":"${mark}"`),
  quarantined('two JSON texts one after the other', (mark) => `{"user_id":"${mark}"} {}`),
  quarantined('a byte-order mark before JSON', (mark) => `\uFEFF{"user_id":"${mark}"}`),
  quarantined('an escaped NUL', (mark) => `{"user_id":"${mark}\\u0000"}`),
  quarantined('an escaped NUL in a field that nobody reads', (mark) => `{"user_id":"${mark}","x":"\\u0000"}`),
  quarantined('a NUL byte', (mark) => bytes(`{"user_id":"${mark}`, [0], '"}')),
  quarantined('half a surrogate pair', (mark) => `{"user_id":"${mark}","ip":"\\ud83d"}`),
  quarantined('the wrong half of a surrogate pair', (mark) => `{"user_id":"${mark}","ip":"\\udc00\\ud83d"}`),
  quarantined('a number out of range', (mark) => `{"user_id":"${mark}","x":1e999999}`),
  quarantined('UTF-8 that is none', (mark) => bytes(`{"user_id":"${mark}`, [0xff, 0xfe], '"}')),
  quarantined('a surrogate in UTF-8', (mark) => bytes(`{"user_id":"${mark}`, [0xed, 0xa0, 0x80], '"}')),
  quarantined('UTF-8 that breaks off', (mark) => bytes(`{"user_id":"${mark}`, [0xe2, 0x82], '"}')),
  quarantined('an overlong form in UTF-8', (mark) => bytes(`{"user_id":"${mark}`, [0xc0, 0xaf], '"}')),
  quarantined('UTF-16', (mark) => Buffer.from(`{"user_id":"${mark}"}`, 'utf16le')),
  quarantined('nesting 100,000 deep', (mark) => nested(100_000, mark)),
  quarantined(
    'nesting 100,000 deep that breaks off',
    (mark) => `{"user_id":"${mark}","x":${'['.repeat(100_000)}`,
  ),
  quarantined('objects 100,000 deep', (mark) => `${'{"a":'.repeat(100_000)}"${mark}"${'}'.repeat(100_000)}`),
];

/** JSON that is no login event. */
export const NO_EVENT: Case[] = [
  quarantined('an array', (mark) => `[{"user_id":"${mark}"}]`),
  quarantined('a string', (mark) => `"${mark}"`),
  quarantined('a number', () => '42'),
  quarantined('true', () => 'true'),
  quarantined('null', () => 'null'),
  quarantined('an empty object', () => '{}'),
  quarantined('the wrong type of message', () => '{"foo":"oops_wrong_msg_type","bar":"123"}'),
  quarantined('a user_id that is absent', (mark) => event({ user_id: undefined, ip: mark })),
  quarantined('a user_id that is written otherwise', (mark) => event({ user_id: undefined, User_ID: mark })),
  quarantined('a user_id that is empty', (mark) => event({ user_id: '', ip: mark })),
  quarantined('a user_id that is null', (mark) => event({ user_id: null, ip: mark })),
  quarantined('a user_id that is a number', (mark) => event({ user_id: 42, ip: mark })),
  quarantined('a user_id that is true', (mark) => event({ user_id: true, ip: mark })),
  quarantined('a user_id that is an object', (mark) => event({ user_id: { id: mark } })),
  quarantined('a user_id that is an array', (mark) => event({ user_id: [mark] })),
  quarantined('a body of 1 MiB in one user_id', (mark) => event({ user_id: mark.padEnd(1_048_576, 'x') })),
  quarantined('a body of 1 MiB in one ip', (mark) => event({ ip: mark.padEnd(1_048_576, 'x') })),
  quarantined('duplicate keys of which the last is wrong', (mark) => `{"user_id":"${mark}","user_id":null}`),
];

/** Odd, and an event all the same. */
export const ODD: Case[] = [
  loaded('fields that nobody knows', (mark) => event({ nobody: mark, 'user-agent': { a: [1, null, mark] } })),
  loaded('a body of 1 MiB in a field that nobody knows', (mark) => event({ x: mark.padEnd(1_048_576, 'x') })),
  loaded(
    'duplicate keys of which the last is right',
    (mark) => `{"user_id":null,"ip":"${mark}","user_id":"u"}`,
  ),
  loaded('space around JSON', (mark) => ` \r\n\t${event({ ip: mark })}\n `),
  loaded('nesting of some depth in a field that nobody knows', (mark) =>
    nested(500, 'u').replace('{', `{"ip":"${mark}",`),
  ),
  loaded('characters beyond the first plane', (mark) => event({ ip: `${mark}😀𝕏` })),
  loaded(
    'characters beyond the first plane as escapes',
    (mark) => `{"user_id":"u","ip":"${mark}\\ud83d\\ude00"}`,
  ),
  loaded('characters that no text should have', (mark) => event({ ip: `${mark}\u202e\uffff\u0001` })),
  loaded('backslashes and quotes', (mark) => event({ ip: `${mark}\\x41\\'"; --` })),
];

/** Every field's wrong types. */
export const WRONG_TYPES: Case[] = ['ip', 'device_id', 'device_type', 'locale', 'app_version'].flatMap(
  (field) =>
    [42, true, ['a'], { a: 1 }].map((value) =>
      quarantined(`${field} that is ${JSON.stringify(value)}`, (mark) => event({ [field]: value, x: mark })),
    ),
);

/** Every field at its limit and one beyond; two bytes a character where the limit counts bytes, four where it counts characters. */
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
  const what = `${field} of ${character === 'a' ? '' : `${Buffer.byteLength(character)}-byte `}characters`;
  return [
    loaded(`${what}, ${limit} of them`, of(limit)),
    quarantined(`${what}, ${limit + 1} of them`, of(limit + 1)),
  ];
}

/** Nothing has no token, in every field that may be absent. */
export const ABSENT: Case[] = ['ip', 'device_id', 'device_type', 'locale', 'app_version'].flatMap((field) => [
  loaded(`${field} that is null`, () => event({ [field]: null })),
  loaded(`${field} that is absent`, () => event({ [field]: undefined })),
  loaded(`${field} that is empty`, () => event({ [field]: '' })),
]);
