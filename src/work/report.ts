import { counted } from '../counted.ts';
import { describeResidue } from './clear-staging.ts';
import type { OnceSummary } from './worker.ts';

/** What a worker that ran once has done: one line for people. */
export function onceLine({
  batches,
  messages,
  loaded,
  duplicates,
  quarantined,
  residue,
}: OnceSummary): string {
  const outcome =
    messages === 0 ? '' : ` (${loaded} loaded, ${duplicates} duplicates, ${quarantined} quarantined)`;
  const disk = residue === undefined ? '; no body of theirs is left on the disk of Postgres' : '';
  return `masked and acknowledged ${counted(messages, 'message')} in ${counted(batches, 'batch', 'batches')}${outcome}${disk}`;
}

/** Why it does not count as done: a line each. */
export function onceProblems({ failed, residue }: OnceSummary, wasStopped: boolean): string[] {
  return [
    ...(failed > 0 ? [`${counted(failed, 'job run')} failed and will be tried again; the log says why`] : []),
    ...(wasStopped ? ['it was told to stop: the jobs that are due are for the next worker'] : []),
    ...(residue === undefined ? [] : [describeResidue(residue)]),
  ];
}
