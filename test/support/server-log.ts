import { readFileSync, statSync } from 'node:fs';
import { inject } from 'vitest';

/** What the server has logged since a moment. It logs before it answers, so there is nothing to wait for. */
export interface LogMark {
  since(): Buffer;
}

/** The log is the cluster's: with TEST_DATABASE_URL there is none to read, and what it holds is not known. */
export function markLog(): LogMark {
  const file = inject('postgresLog');
  const start = statSync(file, { throwIfNoEntry: false })?.size ?? 0;
  return {
    since: () => {
      const size = statSync(file, { throwIfNoEntry: false })?.size ?? 0;
      return size === 0 ? Buffer.alloc(0) : readFileSync(file).subarray(start);
    },
  };
}
