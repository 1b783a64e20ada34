import type { Body } from '../support/staging.ts';
import type { Result } from './outcomes.ts';

/** The length limit of each field, and the function that measures a value's length. */
const LIMITS: Record<string, [limit: number, length: (text: string) => number]> = {
  user_id: [128, (text) => [...text].length],
  ip: [256, Buffer.byteLength],
  device_id: [256, Buffer.byteLength],
  device_type: [32, (text) => [...text].length],
  locale: [32, (text) => [...text].length],
  app_version: [64, (text) => [...text].length],
};

/** Near these limits, a body may be loaded or quarantined. `numeric` has up to 131,072 digits. */
const DEEP = 500;
const LONG_EXPONENT = /[eE][-+]?\d{5,}/;
const MANY_DIGITS = /\d{10000}/;

/**
 * Computes the result of a body without Postgres.
 *
 * @returns undefined if either result is right
 */
export function expectedResult(body: Body): Result | undefined {
  let text: string;
  let event: unknown;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(Buffer.from(body as string));
    event = JSON.parse(text);
  } catch {
    return 'quarantined';
  }
  // Strings that a duplicate key replaces count too, so this searches the text.
  const strings = (text.match(/"(?:[^"\\]|\\.)*"/g) ?? []).map((each) => JSON.parse(each) as string);
  if (strings.some((each) => !each.isWellFormed() || each.includes('\0'))) return 'quarantined';
  if (LONG_EXPONENT.test(text) || MANY_DIGITS.test(text) || depthOf(text) > DEEP) return undefined;
  if (typeof event !== 'object' || event === null || Array.isArray(event)) return 'quarantined';

  const fields = new Map(Object.entries(event));
  const userId: unknown = fields.get('user_id');
  if (typeof userId !== 'string' || userId === '') return 'quarantined';
  for (const [name, [limit, length]] of Object.entries(LIMITS)) {
    const value: unknown = fields.get(name) ?? '';
    if (typeof value !== 'string' || length(value) > limit) return 'quarantined';
  }
  return 'loaded';
}

function depthOf(text: string): number {
  let depth = 0;
  let deepest = 0;
  for (const character of text) {
    if (character === '[' || character === '{') depth += 1;
    else if (character === ']' || character === '}') depth -= 1;
    deepest = Math.max(deepest, depth);
  }
  return deepest;
}
