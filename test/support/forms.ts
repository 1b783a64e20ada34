/**
 * The forms in which a value may turn up where it should not: as it is, in hex (which is how Postgres prints bytea),
 * in base64 at any of its three alignments, and escaped as JSON.
 */
export function formsOf(value: string | Buffer): Buffer[] {
  const bytes = Buffer.from(value as string);
  const hex = bytes.toString('hex');
  const forms = [hex, hex.toUpperCase(), ...base64sOf(bytes)];
  if (typeof value === 'string') forms.push(JSON.stringify(value).slice(1, -1));
  return [bytes, ...forms.map((form) => Buffer.from(form))];
}

/** Whether a value is in bytes, in any form. */
export function holds(haystack: Buffer, value: string | Buffer): boolean {
  return formsOf(value).some((form) => haystack.includes(form));
}

/** Base64 of bytes that begin at any place of a longer text: the characters that no neighbour changes. */
function base64sOf(bytes: Buffer): string[] {
  return [0, 1, 2].map((offset) => {
    const padded = Buffer.concat([Buffer.alloc(offset), bytes]);
    const first = offset === 0 ? 0 : offset + 1;
    return padded.toString('base64').slice(first, Math.floor((padded.length * 8) / 6));
  });
}
