/** Arbitraries of fast-check for bodies: valid, almost valid and random ones. */
import fc from 'fast-check';
import type { Body } from '../support/staging.ts';

/** Text with any Unicode characters, and with lone surrogates. */
export const anyText = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 300 }),
  fc.string({ unit: 'grapheme', maxLength: 40 }),
  // A character of each plane.
  fc.tuple(fc.integer({ min: 0, max: 16 }), fc.integer({ min: 1, max: 0xfffd }))
    .map(([plane, at]) => String.fromCodePoint(plane * 0x10000 + at)),
  fc.ipV4(),
  fc.ipV6(),
  fc.array(fc.integer({ min: 0, max: 0xffff }), { maxLength: 20 }).map((units) => String.fromCharCode(...units)),
); // prettier-ignore

/** Strings of a limit's length, one less and one more, of characters of one to four bytes. */
const nearLimits = fc
  .tuple(
    fc.constantFrom(32, 64, 128, 256),
    fc.integer({ min: -1, max: 1 }),
    fc.constantFrom('a', 'é', '語', '😀'),
  )
  .chain(([limit, off, character]) =>
    fc.constantFrom(
      character.repeat(limit + off),
      character.repeat(Math.floor(limit / Buffer.byteLength(character)) + off),
    ),
  );
const value = fc.oneof(
  { weight: 4, arbitrary: anyText },
  { weight: 2, arbitrary: nearLimits },
  { weight: 1, arbitrary: fc.jsonValue() },
  fc.constant(undefined),
);
const login = fc
  .record({ user_id: fc.oneof(value, fc.uuid()), ip: value, device_id: value, device_type: value, locale: value, app_version: value })
  .map((fields) => JSON.stringify(fields)); // prettier-ignore

/** A login that is valid except for one field. */
const almostValid = fc
  .tuple(fc.constantFrom('user_id', 'ip', 'device_id', 'device_type', 'locale', 'app_version', 'x'), value)
  .map(([field, each]) => JSON.stringify({ user_id: 'u', ip: '192.0.2.1', [field]: each }));

/**
 * Numbers and nesting at limits, duplicate keys and whitespace, as text, because JSON.stringify cannot
 * produce them.
 */
const number = fc
  .tuple(fc.constantFrom('', '-', '+'), fc.constantFrom('0', '1', '00', '9'.repeat(30), '9'.repeat(400)), fc.constantFrom('', '.', '.5', `.${'3'.repeat(400)}`), fc.constantFrom('', 'e', 'E+5', 'e-400', 'e308', 'e9999', 'e131071', 'e999999999'))
  .map((parts) => parts.join('')); // prettier-ignore
const nesting = fc
  .tuple(
    fc.constantFrom(1, 5, 499, 2_000, 7_000, 40_000),
    fc.constantFrom('[]', '{"a":}', '[1,]'),
    fc.boolean(),
  )
  .map(
    ([depth, pair, whole]) => `${pair.slice(0, -1).repeat(depth)}0${whole ? pair.at(-1)!.repeat(depth) : ''}`,
  );
const written = fc
  .tuple(fc.constantFrom('x', 'user_id', 'ip', '\\u0069p', '__proto__', ''), fc.oneof(number, { weight: 1, arbitrary: nesting }, fc.json(), anyText), fc.constantFrom('', ' ', '\n', '\u00a0', '\ufeff', '\f'), fc.boolean())
  .map(([key, text, space, first]) => {
    const odd = `"${key}"${space}:${text}`;
    const valid = `"user_id":"u","ip":"192.0.2.1"`;
    return `${space}{${first ? `${odd},${valid}` : `${valid},${odd}`}}${space}`;
  }); // prettier-ignore

/** JSON with a few bytes changed, inserted or removed. */
const mutated = fc
  .tuple(fc.oneof(login, almostValid, written), fc.array(fc.tuple(fc.nat(), fc.nat(255), fc.constantFrom(0, 1, 2)), { minLength: 1, maxLength: 4 }))
  .map(([json, changes]) => {
    let bytes = Buffer.from(json);
    for (const [where, byte, kind] of changes) {
      const at = where % (bytes.length + 1);
      bytes = Buffer.concat([bytes.subarray(0, at), kind === 2 ? Buffer.alloc(0) : Buffer.from([byte]), bytes.subarray(kind === 0 ? at + 1 : at + (kind === 2 ? 1 : 0))]);
    }
    return bytes;
  }); // prettier-ignore

export const anyBody: fc.Arbitrary<Body> = fc.oneof(
  { weight: 4, arbitrary: login },
  { weight: 4, arbitrary: almostValid },
  { weight: 4, arbitrary: mutated },
  { weight: 3, arbitrary: written },
  { weight: 1, arbitrary: fc.uint8Array({ maxLength: 200 }) },
  { weight: 1, arbitrary: fc.json() },
  { weight: 1, arbitrary: anyText },
);
