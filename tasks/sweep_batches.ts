import { task } from '../src/work/task.ts';

export default task('sweep_batches', async ({ pool }) => {
  await pool.query('select staging.sweep_batches()');
});
