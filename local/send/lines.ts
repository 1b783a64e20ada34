import { createReadStream } from 'node:fs';
import { SettingError } from '../../src/errors.ts';

/**
 * The lines of a file, verbatim but for the newline. Not `readline`, which also breaks at a carriage return, and a
 * body may hold one. An empty line is passed over: SQS takes no empty body.
 *
 * @throws {SettingError} where the file cannot be read
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
