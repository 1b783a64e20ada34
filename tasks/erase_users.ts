import { takeSteps } from '../src/work/steps.ts';
import { task } from '../src/work/task.ts';

export default task('erase_users', (context, _payload, stop) =>
  takeSteps(context, 'masking.erase_step', stop),
);
