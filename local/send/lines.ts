import { createReadStream } from 'node:fs';
import { SettingError } from '../../src/errors.ts';

/**
 * The lines of a file, unchanged, without the newline. It does not use `readline`, which also breaks at a carriage
 * return, because a body may contain one. Empty lines are skipped, because SQS accepts no empty body.
 *
 * @throws {SettingError} if the file cannot be read
 */
export async function* linesOf(file: string): AsyncGenerator<string, void> {
  let rest = '';
  try {
    for await (const chunk of createReadStream(file, 'utf8') as AsyncIterable<string>) {
      const lines = chunk.split('\n');
      lines[0] = rest + lines[0];
      rest = lines.pop() ?? '';
      for (const line of lines) if (line !== '') yield line;
    }
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw new SettingError(`--file cannot be read (${code ?? 'unknown error'})`);
  }
  if (rest !== '') yield rest;
}
