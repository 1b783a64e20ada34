import { takeSteps } from '../src/work/steps.ts';
import { BACKGROUND, task } from '../src/work/task.ts';

/** Clears the tokens of users whose erasure was ordered, and deletes the values that nobody else has. */
export default task({
  name: 'erase_users',
  kind: 'upkeep',
  schedule: BACKGROUND,
  run: (context, _payload, stop) => takeSteps(context, 'masking.erase_step', stop),
});
