import { task } from '../src/work/task.ts';

export default task('maintain_partitions', async ({ pool }) => {
  await pool.query('select staging.maintain_partitions()');
});
