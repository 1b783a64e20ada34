/**
 * COPY in Postgres's binary format. Secrets and bodies enter the database only in this way. Statements and parameters
 * reach logs and `pg_stat_statements`; binary COPY data does not, not even if it fails.
 *
 * @see https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS-BINARY
 */
import type pg from 'pg';
import { from as copyFrom } from 'pg-copy-streams';

/** How the values of a Postgres type are written. */
export interface Encoder<T> {
  /** How many bytes `write` fills. */
  size(value: T): number;
  write(target: Buffer, offset: number, value: T): void;
}

/** An encoder for elements of arrays. */
export interface ElementEncoder<T> extends Encoder<T> {
  /** The type's OID, which is the same in every database. */
  readonly oid: number;
}

/** A row's values, one for each encoder; null is SQL's NULL. */
export type RowOf<F extends readonly Encoder<never>[]> = {
  readonly [K in keyof F]: F[K] extends Encoder<infer T> ? T | null : never;
};

/** uuid, from hexadecimal text with or without hyphens. */
export const uuid: ElementEncoder<string> = {
  oid: 2950,
  size: () => 16,
  write: (target, offset, value) => void target.write(value.replaceAll('-', ''), offset, 16, 'hex'),
};

/** text. */
export const text: ElementEncoder<string> = {
  oid: 25,
  size: (value) => Buffer.byteLength(value),
  write: (target, offset, value) => void target.write(value, offset),
};

/** bytea, from bytes or from the UTF-8 of a string. */
export const bytea: ElementEncoder<Uint8Array | string> = {
  oid: 17,
  size: (value) => (typeof value === 'string' ? Buffer.byteLength(value) : value.length),
  write: (target, offset, value) =>
    void (typeof value === 'string' ? target.write(value, offset) : target.set(value, offset)),
};

/** int4. */
export const int4: ElementEncoder<number> = {
  oid: 23,
  size: () => 4,
  write: (target, offset, value) => void target.writeInt32BE(value, offset),
};

/** 2000-01-01T00:00:00Z, the start of Postgres's microseconds, in milliseconds since 1970. */
const POSTGRES_EPOCH_MS = 946_684_800_000;

/** timestamptz, from whole milliseconds since 1970. */
export const timestamptz: ElementEncoder<number> = {
  oid: 1184,
  size: () => 8,
  write: (target, offset, value) =>
    void target.writeBigInt64BE(BigInt(value - POSTGRES_EPOCH_MS) * 1000n, offset),
};

/** The number of dimensions, a flag for nulls, the elements' type, and the length and lower bound of the dimension. */
const ARRAY_HEADER_SIZE = 5 * 4;

/**
 * An array of one dimension, without nulls.
 *
 * @see array_recv in Postgres's src/backend/utils/adt/arrayfuncs.c
 */
export function arrayOf<T>(element: ElementEncoder<T>): Encoder<readonly T[]> {
  return {
    size: (values) =>
      values.reduce((sum, value) => sum + LENGTH_SIZE + element.size(value), ARRAY_HEADER_SIZE),
    write: (target, start, values) => {
      let offset = start;
      for (const word of [1, 0, element.oid, values.length, 1]) offset = target.writeInt32BE(word, offset);
      for (const value of values) offset = writeWithLength(target, offset, element, value);
    },
  };
}

/** The format's signature, then two int4: no flags, and no header extension. */
const HEADER = Buffer.concat([Buffer.from('PGCOPY\n\xff\r\n\0', 'latin1'), Buffer.alloc(8)]);
const FIELD_COUNT_SIZE = 2;
const LENGTH_SIZE = 4;
const NULL_LENGTH = -1;
const END = -1;

/**
 * Encodes rows for `COPY … FROM STDIN (FORMAT binary)` into one buffer of the exact size.
 *
 * @param fields the columns' encoders, in the order of the column list
 * @param rows the values, in the same order
 */
export function encodeRows<const F extends readonly Encoder<never>[]>(
  fields: F,
  rows: readonly RowOf<F>[],
): Buffer {
  // TypeScript does not know that the nth value fits the nth encoder. `RowOf` has checked it.
  const encoders = fields as readonly Encoder<unknown>[];
  const buffer = Buffer.allocUnsafe(sizeOf(encoders, rows));
  let offset = HEADER.copy(buffer);
  for (const row of rows) {
    offset = buffer.writeInt16BE(encoders.length, offset);
    for (const [index, encoder] of encoders.entries()) {
      const value: unknown = row[index];
      offset =
        value === null
          ? buffer.writeInt32BE(NULL_LENGTH, offset)
          : writeWithLength(buffer, offset, encoder, value);
    }
  }
  buffer.writeInt16BE(END, offset);
  return buffer;
}

/** Writes a value after its length. Returns the offset behind it. */
function writeWithLength<T>(target: Buffer, offset: number, encoder: Encoder<T>, value: T): number {
  const size = encoder.size(value);
  const start = target.writeInt32BE(size, offset);
  encoder.write(target, start, value);
  return start + size;
}

function sizeOf(encoders: readonly Encoder<unknown>[], rows: readonly (readonly unknown[])[]): number {
  let size =
    HEADER.length + FIELD_COUNT_SIZE + rows.length * (FIELD_COUNT_SIZE + encoders.length * LENGTH_SIZE);
  for (const row of rows) {
    for (const [index, encoder] of encoders.entries()) {
      if (row[index] !== null) size += encoder.size(row[index]);
    }
  }
  return size;
}

/**
 * Runs a `COPY … FROM STDIN (FORMAT binary)` with data of `encodeRows`.
 *
 * @param client a connection that nothing else uses now, with a listener for `error`
 * @param statement the COPY statement; it must contain no values
 * @throws any error of `pg`; then the transaction is aborted
 */
export function copyIn(client: pg.ClientBase, statement: string, data: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    const stream = client.query(copyFrom(statement));
    stream.on('error', reject);
    stream.once('finish', resolve);
    stream.end(data);
  });
}
