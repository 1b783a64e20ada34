/** Tests the scan itself: it finds a value in each form, and in each place that it searches. */
import { randomBytes } from 'node:crypto';
import { inspect } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { unseal } from '../../src/database/kek.ts';
import { Scanner } from '../support/leaks/needles.ts';
import { DELIBERATE_LEAKS } from '../support/leaks/deliberate-leaks.ts';
import { scan } from '../support/leaks/scan.ts';
import { everythingIn } from '../support/leaks/recorder.ts';
import { createWorld, type World } from '../support/leaks/world.ts';

const TEXT = `Zürich "${randomBytes(9).toString('hex')}"`;
const KEY = randomBytes(32);
const around = (bytes: Buffer | string) =>
  Buffer.concat([randomBytes(100), Buffer.from(bytes as string), randomBytes(100)]);
const base64At = (offset: number) =>
  Buffer.concat([randomBytes(offset), Buffer.from(TEXT)]).toString('base64');

test.each([
  ['unchanged', TEXT],
  ['in hex', Buffer.from(TEXT).toString('hex')],
  ['in upper-case hex', Buffer.from(TEXT).toString('hex').toUpperCase()],
  ['in base64', base64At(0)],
  ['in base64, shifted by one byte', base64At(1)],
  ['in base64, shifted by two bytes', base64At(2)],
  ['in JSON', JSON.stringify(TEXT)],
  ['in JSON with escapes', JSON.stringify(TEXT).replace('ü', '\\u00fc')],
  ['in little-endian UTF-16', Buffer.from(TEXT, 'utf16le')],
  ['in big-endian UTF-16', Buffer.from(TEXT, 'utf16le').swap16()],
  ['interrupted by a page header', `${TEXT.slice(0, 20)}${'\0'.repeat(24)}${TEXT.slice(20)}`],
])('the scanner finds a text %s', (_, form) => {
  expect(new Scanner(new Map([['text', TEXT]])).namesIn(around(form))).toEqual(['text']);
});

test.each([
  ['unchanged', KEY],
  ['in the hex format of bytea', `\\x${KEY.toString('hex')}`],
  ['in the escape format of bytea', escaped(KEY)],
  ['in base64', KEY.toString('base64')],
  ['as Node prints it', inspect(KEY)],
  ['as Node converts it to JSON', JSON.stringify(KEY)],
  ['that is cut off', KEY.toString('hex').slice(0, 40)],
])('the scanner finds a key %s', (_, form) => {
  expect(new Scanner(new Map([['key', KEY]])).namesIn(around(form))).toEqual(['key']);
});

test('the scanner finds nothing in random bytes', () => {
  const scanner = new Scanner(new Map<string, string | Buffer>([['text', TEXT], ['key', KEY]])); // prettier-ignore
  expect(scanner.namesIn(randomBytes(2 ** 22))).toEqual([]);
});

test('the recorder records all properties of an error, also hidden and nested ones', () => {
  const cause = Object.assign(new Error('deep'), { response: { [Symbol('body')]: Buffer.from('bytes') } });
  const error = new Error('shallow', { cause });
  Object.defineProperty(error, 'hidden', { value: ['hidden'], enumerable: false });
  const text = everythingIn(new AggregateError([error]));
  for (const part of ['shallow', 'deep', 'hidden', Buffer.from('bytes').toString('hex')])
    expect(text).toContain(part);
});

describe('a scan, with a deliberate leak in each place,', () => {
  let world: World;
  let found: string[];
  beforeAll(async () => {
    world = await createWorld();
    await unseal(world.db.pool('worker'), world.db.kek);
    for (const [place, leak] of DELIBERATE_LEAKS)
      await leak(world, world.canaries.text(`leaked to ${place}`));
    found = await scan(world);
  });
  afterAll(() => world.stop());

  test.each(DELIBERATE_LEAKS.map(([place]) => place))('finds the leak in %s', (place) => {
    expect(found).toContain(`${place}: leaked to ${place}`);
  });
});

function escaped(bytes: Buffer): string {
  return [...bytes]
    .map((byte) => {
      if (byte === 0x5c) return '\\\\';
      return byte < 0x20 || byte > 0x7e
        ? `\\${byte.toString(8).padStart(3, '0')}`
        : String.fromCharCode(byte);
    })
    .join('');
}
