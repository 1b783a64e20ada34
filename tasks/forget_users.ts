import { takeSteps } from '../src/work/steps.ts';
import { task } from '../src/work/task.ts';

export default task('forget_users', (context, _payload, stop) =>
  takeSteps(context, 'masking.forget_step', stop),
);
