import { formsOf } from '../forms.ts';

/** Values to search for, by the name to report. */
export type Canaries = ReadonlyMap<string, string | Buffer>;

/** Shorter pieces would occur by chance in tens of megabytes. In bytes. */
const SHORTEST_PIECE = 10;
/** The scanner finds needles by a hash of their first eight bytes. */
const HASHED = 8;
const HASH_BITS = 24;
const PAGE = Buffer.alloc(8192);

interface Needle {
  name: string;
  bytes: Buffer;
}

/**
 * Every form in which a value may appear: unchanged, in hexadecimal of both cases, in base64 at each of three
 * alignments, as JSON with and without escapes, in UTF-16 of both byte orders, and, if it is bytes, as Postgres and
 * Node print bytes. Each form is searched for in two halves, because WAL has a header every 8 KiB, and messages may be
 * cut off.
 */
export function needlesOf(value: string | Buffer): Buffer[] {
  const forms = [...formsOf(value), ...(typeof value === 'string' ? textForms(value) : byteForms(value))];
  const pieces = forms.flatMap((form) => {
    const middle = form.length >> 1;
    return middle < SHORTEST_PIECE ? [form] : [form.subarray(0, middle), form.subarray(middle)];
  });
  return [...new Map(pieces.map((piece) => [piece.toString('latin1'), piece])).values()];
}

/** Searches for all canaries in one pass over the bytes. */
export class Scanner {
  readonly #starts = new Uint8Array(1 << HASH_BITS);
  readonly #needles = new Map<number, Needle[]>();

  constructor(canaries: Canaries) {
    for (const [name, value] of canaries) {
      for (const bytes of needlesOf(value)) {
        const start = hashOf(bytes.readInt32BE(0), bytes.readInt32BE(4));
        this.#starts[start] = 1;
        this.#needles.set(start, [...(this.#needles.get(start) ?? []), { name, bytes }]);
      }
    }
  }

  /** The names of the canaries that the bytes contain. */
  namesIn(haystack: Uint8Array): string[] {
    const bytes = Buffer.from(haystack.buffer, haystack.byteOffset, haystack.byteLength);
    const starts = this.#starts;
    const found = new Set<string>();
    let early = 0;
    let late = 0;
    for (let at = 0; at < bytes.length; at += 1) {
      // Most pages of WAL, and many others, are empty.
      while (at % PAGE.length === 0 && bytes.subarray(at, at + PAGE.length).equals(PAGE)) {
        at += PAGE.length;
        early = 0;
        late = 0;
      }
      early = (early << 8) | (late >>> 24);
      late = (late << 8) | (bytes[at] ?? 0);
      const start = hashOf(early, late);
      if (starts[start] === 0) continue;
      const from = at - HASHED + 1;
      for (const needle of this.#needles.get(start)!) {
        if (bytes.subarray(from, from + needle.bytes.length).equals(needle.bytes)) found.add(needle.name);
      }
    }
    return [...found].sort();
  }
}

function hashOf(early: number, late: number): number {
  return (Math.imul(early, 0x9e3779b1) ^ Math.imul(late, 0x85ebca6b)) >>> (32 - HASH_BITS);
}

function textForms(value: string): Buffer[] {
  const wide = Buffer.from(value, 'utf16le');
  const escaped = [...value]
    .map((unit) => (unit > '\u007e' ? `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}` : unit))
    .join('');
  return [wide, Buffer.from(wide).swap16(), Buffer.from(JSON.stringify(escaped).slice(1, -1))];
}

/**
 * Bytes as `bytea_output = escape`, as JSON.stringify of a Buffer, as console.log of a Buffer, and in hex as UTF-16.
 */
function byteForms(value: Buffer): Buffer[] {
  const octal = [...value].map((byte) => {
    if (byte === 0x5c) return '\\\\';
    return byte < 0x20 || byte > 0x7e ? `\\${byte.toString(8).padStart(3, '0')}` : String.fromCharCode(byte);
  });
  const spaced = value.toString('hex').replaceAll(/..(?=.)/g, '$& ');
  const hex = Buffer.from(value.toString('hex'), 'utf16le');
  return [Buffer.from(octal.join('')), Buffer.from(value.join(',')), Buffer.from(spaced), hex];
}
