import { task } from '../src/work/task.ts';

export default task('clean_ledger', async ({ pool }) => {
  await pool.query('select staging.clean_ledger()');
});
