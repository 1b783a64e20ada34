import { counted } from '../counted.ts';
import { describeResidue } from './clear-staging.ts';
import type { OnceSummary } from './worker.ts';

/** What a worker that ran once has done, as one line for people. */
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
  const disk = residue === undefined ? '; none of their bodies is left on the disk of Postgres' : '';
  return `masked and acknowledged ${counted(messages, 'message')} in ${counted(batches, 'batch', 'batches')}${outcome}${disk}`;
}

/** What keeps its work from being complete, a line each. */
export function onceProblems({ failed, residue }: OnceSummary, wasStopped: boolean): string[] {
  return [
    ...(failed > 0 ? [`${counted(failed, 'job run')} failed and will be retried; the log says why`] : []),
    ...(wasStopped ? ['the worker was stopped: the next worker runs the jobs that are due'] : []),
    ...(residue === undefined ? [] : [describeResidue(residue)]),
  ];
}
