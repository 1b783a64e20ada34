import { takeSteps } from '../src/work/steps.ts';
import { task } from '../src/work/task.ts';

export default task('rotate_keys', (context, _payload, stop) =>
  takeSteps(context, 'masking.rotate_step', stop),
);
