import { readFileSync } from 'node:fs';
import path from 'node:path';

/**
 * A text that is JSON (`y`), is none (`n`), or is JSON by its grammar that an implementation may refuse (`i`). What is JSON by its grammar and
 * that no `jsonb` can hold (NUL, half a surrogate pair) counts as none.
 */
export interface CorpusCase {
  kind: 'y' | 'n' | 'i';
  name: string;
  text: Buffer;
}

/** The cases of `json.jsonl`: a line each of kind, name, and text (or its bytes in hex). */
export function readCorpus(): CorpusCase[] {
  const lines = readFileSync(path.join(import.meta.dirname, 'json.jsonl'), 'utf8')
    .trimEnd()
    .split('\n');
  return lines.map((line) => {
    const [kind, name, text] = JSON.parse(line) as [CorpusCase['kind'], string, string | { hex: string }];
    return {
      kind,
      name,
      text: typeof text === 'string' ? Buffer.from(text) : Buffer.from(text.hex, 'hex'),
    };
  });
}
