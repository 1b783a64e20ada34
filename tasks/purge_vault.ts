import { takeSteps } from '../src/work/steps.ts';
import { BACKGROUND, task } from '../src/work/task.ts';

/** Deletes values that no login refers to any more, after partitions were dropped. */
export default task({
  name: 'purge_vault',
  kind: 'upkeep',
  schedule: BACKGROUND,
  run: (context, _payload, stop) => takeSteps(context, 'masking.purge_step', stop),
});
