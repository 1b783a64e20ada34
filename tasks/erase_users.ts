import { takeSteps } from '../src/work/steps.ts';
import { BACKGROUND, task } from '../src/work/task.ts';

/** Clears the tokens of users who are to be erased, and deletes the values that no other login has. */
export default task({
  name: 'erase_users',
  kind: 'upkeep',
  schedule: BACKGROUND,
  run: (context, _payload, stop) => takeSteps(context, 'masking.erase_step', stop),
});
