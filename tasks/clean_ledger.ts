import { daily, task } from '../src/work/task.ts';

/** Deletes old rows of the ledger. */
export default task({
  name: 'clean_ledger',
  kind: 'upkeep',
  schedule: daily('47 1 * * *'),
  async run({ pool }) {
    await pool.query('select staging.clean_ledger()');
  },
});
