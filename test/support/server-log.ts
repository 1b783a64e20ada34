import { readFileSync, statSync } from 'node:fs';
import { inject } from 'vitest';

/** A position in the server's log. */
export interface LogMark {
  /** What the server has logged since. It writes the log before it replies, so there is nothing to wait for. */
  since(): Buffer;
}

/** Marks the end of the log. Other test files use the same server, so their statements follow, too. */
export function markLog(): LogMark {
  const file = inject('postgresLog');
  const start = statSync(file).size;
  return {
    since: () => {
      const size = statSync(file).size;
      return size === 0 ? Buffer.alloc(0) : readFileSync(file).subarray(start);
    },
  };
}
