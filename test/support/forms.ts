/**
 * The encodings in which a leaked value may appear: unchanged, in hexadecimal (as Postgres prints bytea), in base64 at
 * each of three alignments, and escaped as JSON.
 */
export function formsOf(value: string | Buffer): Buffer[] {
  const bytes = Buffer.from(value as string);
  const hex = bytes.toString('hex');
  const forms = [hex, hex.toUpperCase(), ...base64sOf(bytes)];
  if (typeof value === 'string') forms.push(JSON.stringify(value).slice(1, -1));
  return [bytes, ...forms.map((form) => Buffer.from(form))];
}

/** Whether the bytes contain a value in any of its forms. */
export function holds(haystack: Buffer, value: string | Buffer): boolean {
  return formsOf(value).some((form) => haystack.includes(form));
}

/** Base64 of bytes within a longer text: the characters that do not depend on the bytes before and after. */
function base64sOf(bytes: Buffer): string[] {
  return [0, 1, 2].map((offset) => {
    const padded = Buffer.concat([Buffer.alloc(offset), bytes]);
    const first = offset === 0 ? 0 : offset + 1;
    return padded.toString('base64').slice(first, Math.floor((padded.length * 8) / 6));
  });
}
