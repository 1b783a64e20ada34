import { task } from '../src/work/task.ts';

export default task('retention', async ({ pool }) => {
  await pool.query('select masking.retention()');
});
