import { takeSteps } from '../src/work/steps.ts';
import { task } from '../src/work/task.ts';

export default task('purge_vault', (context, _payload, stop) =>
  takeSteps(context, 'masking.purge_step', stop),
);
