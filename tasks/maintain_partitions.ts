import { daily, task } from '../src/work/task.ts';

/** Creates the partitions of user_logins for the next months. */
export default task({
  name: 'maintain_partitions',
  kind: 'upkeep',
  schedule: daily('17 1 * * *'),
  async run({ pool, log }) {
    const { rows } = await pool.query<{ missing: number }>(
      'select missing from staging.maintain_partitions()',
    );
    const missing = rows[0]?.missing ?? 0;
    if (missing === 0) return;
    log.warn(
      { missing },
      'partitions of user_logins are not created, because a transaction holds the table open: retrying in five minutes',
    );
  },
});
