import { takeSteps } from '../src/work/steps.ts';
import { BACKGROUND, task } from '../src/work/task.ts';

/** Rotates rows to new keys, step by step. */
export default task({
  name: 'rotate_keys',
  kind: 'upkeep',
  schedule: BACKGROUND,
  run: (context, _payload, stop) => takeSteps(context, 'masking.rotate_step', stop),
});
