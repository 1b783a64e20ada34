/**
 * Addresses in every notation, strings that resemble addresses, and their canonical forms, computed without
 * Postgres.
 */
import { isIP, isIPv4 } from 'node:net';
import fc from 'fast-check';

/** Two strings have the same form only if they are the same address. A zone (`%eth0`) makes a form differ. */
export function canonicalForm(text: string): string {
  if (isIP(text) === 0 || text.includes('%')) return `not an address: ${text}`;
  if (isIPv4(text)) return `4: ${text}`;
  const groups = groupsOf(text);
  const mapped = groups.slice(0, 5).every((group) => group === 0) && groups[5] === 0xffff;
  if (!mapped) return `6: ${groups.join(' ')}`;
  return `4: ${groups.slice(6).flatMap((group) => [group >> 8, group & 255]).join('.')}`;
} // prettier-ignore

const numbers = (part: string): number[] =>
  part === '' ? [] : part.split(':').map((each) => Number.parseInt(each, 16));

/**
 * Whether a string is almost an address: it ends in an IPv4 address with too few or too many octets, leading
 * zeros, or an extra dot. Postgres accepts some of these strings, and `inet_pton` accepts none.
 */
export function isAlmostAddress(text: string): boolean {
  return isIP(text) === 0 && /^(?:[\da-f:]*:)?(?:\d+\.)+\d*$/i.test(text);
}

function groupsOf(address: string): number[] {
  const hexadecimal = address.replace(/[\d.]+$/, (tail) => {
    if (!tail.includes('.')) return tail;
    const [a = 0, b = 0, c = 0, d = 0] = tail.split('.').map(Number);
    return `${((a << 8) | b).toString(16)}:${((c << 8) | d).toString(16)}`;
  });
  const [left = '', right] = hexadecimal.split('::');
  const [before, after] = [numbers(left), numbers(right ?? '')];
  return [...before, ...Array.from({ length: 8 - before.length - after.length }, () => 0), ...after];
} // prettier-ignore

const group = fc.oneof(
  { weight: 3, arbitrary: fc.constantFrom(0, 0xffff, 1) },
  fc.integer({ min: 0, max: 0xffff }),
);
const octets = (groups: number[]): string => groups.flatMap((each) => [each >> 8, each & 255]).join('.');

/** One address in every valid notation and in some invalid ones. */
export const notations: fc.Arbitrary<string[]> = fc
  .tuple(
    fc.oneof(
      fc.array(group, { minLength: 8, maxLength: 8 }),
      // IPv4-mapped and IPv4-compatible addresses.
      fc.tuple(fc.constantFrom(0, 0xffff), group, group).map(([sixth, a, b]) => [0, 0, 0, 0, 0, sixth, a, b]),
    ),
    fc.nat(7),
    fc.nat(8),
  )
  .map(([groups, from, length]) => {
    const hex = groups.map((each) => each.toString(16));
    const padded = hex.map((each) => each.padStart(4, '0'));
    const tail = octets(groups.slice(6));
    const run = Math.min(8 - from, length);
    const isZero = groups.slice(from, from + run).every((each) => each === 0);
    // `::` replaces groups of zeros. In place of other groups it gives another address, with another
    // canonical form.
    const shortened = `${hex.slice(0, from).join(':')}::${hex.slice(from + run).join(':')}`;
    const plain = [
      hex.join(':'),
      padded.join(':'),
      hex.join(':').toUpperCase(),
      `${hex.slice(0, 6).join(':')}:${tail}`,
      `${padded.slice(0, 6).join(':').toUpperCase()}:${tail}`,
      ...(isZero ? [shortened, shortened.toUpperCase()] : [shortened]),
      tail,
      `::ffff:${tail}`,
      `::FFFF:${hex.slice(6).join(':')}`,
      `0:0:0:0:0:ffff:${tail}`,
      `::${tail}`,
      `64:ff9b::${tail}`,
      `2002:${hex.slice(6).join(':')}::`,
    ];
    return [...plain, ...plain.slice(0, 2).flatMap(decorated), ...decorated(tail), ...unusual(groups)];
  });

/** An address with characters that some senders add. */
function decorated(address: string): string[] {
  return [
    `${address}%eth0`,
    `[${address}]`,
    `[${address}]:443`,
    `${address}:443`,
    `${address}/32`,
    `${address}/128`,
    `${address}/0`,
    ` ${address}`,
    `${address} `,
    `${address}\n`,
    `\t${address}`,
    `${address}.`,
    `.${address}`,
    `${address}:`,
    `:${address}`,
    `${address}, 10.0.0.1`,
    `+${address}`,
    `${address}\u200b`,
    `\ufeff${address}`,
    address.replaceAll('.', '．'),
    address.replaceAll(/\d/g, (digit) => String.fromCharCode(0xff10 + Number(digit))),
    address.replaceAll(/\d/g, (digit) => String.fromCharCode(0x660 + Number(digit))),
    address.replaceAll(':', '.'),
  ];
}

const octal = (octet: number): string => `0${octet.toString(8)}`;

/**
 * IPv4 addresses that inet_aton accepts and inet_pton rejects, and addresses that are slightly too long or
 * too short.
 */
function unusual(groups: number[]): string[] {
  const [a = 0, b = 0, c = 0, d = 0] = groups.slice(6).flatMap((each) => [each >> 8, each & 255]);
  const number = ((a << 24) | (b << 16) | (c << 8) | d) >>> 0;
  return [
    String(number),
    `0x${number.toString(16)}`,
    `0${number.toString(8)}`,
    `${a}.${b}.${(c << 8) | d}`,
    `${a}.${(b << 16) | (c << 8) | d}`,
    [a, b, c, d].map(octal).join('.'),
    [a, b, c, d].map((octet) => `0x${octet.toString(16)}`).join('.'),
    [a, b, c, d].map((octet) => String(octet).padStart(3, '0')).join('.'),
    `${a}.${b}.${c}`,
    `${a}.${b}.${c}.${d}.0`,
    `${a}.${b}.${c}.${d + 256}`,
    `${a}.${b}.${c}.-${d}`,
    `${a}..${c}.${d}`,
    `${a}.${b}.${c}.${d}e0`,
    groups.map((each) => each.toString(16).padStart(5, '0')).join(':'),
    groups.slice(1).join(':'),
    [...groups, 0].join(':'),
    `1::${groups.join(':')}`,
    `::${groups[0]}::`,
    `:::${groups[7]}`,
    `::ffff:${a}.${b}.${c}`,
    `::ffff:0${a}.${b}.${c}.${d}`,
    `::g`,
    '::',
    '::1',
    '::ffff:0:0',
    ':',
  ];
}
