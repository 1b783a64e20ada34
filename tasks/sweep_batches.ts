import { EVERY_MINUTE, task } from '../src/work/task.ts';

/** Adds the jobs of overdue batches again, and marks batches as lost if a crash emptied them from staging. */
export default task({
  name: 'sweep_batches',
  kind: 'masking',
  schedule: EVERY_MINUTE,
  async run({ pool }) {
    await pool.query('select staging.sweep_batches()');
  },
});
