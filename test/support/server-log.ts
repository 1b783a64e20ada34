import { readFileSync, statSync } from 'node:fs';
import { inject } from 'vitest';

/** What the server has logged since a moment. It logs before it answers, so there is nothing to wait for. */
export interface LogMark {
  since(): Buffer;
}

/** The log is the cluster's, and other files' tests write to it as well. */
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
