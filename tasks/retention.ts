import { daily, task } from '../src/work/task.ts';

/** Drops partitions of user_logins that are older than the retention period. */
export default task({
  name: 'retention',
  kind: 'upkeep',
  schedule: daily('27 1 * * *'),
  async run({ pool, log }) {
    const { rows } = await pool.query<{ overdue: number }>('select overdue from masking.retention()');
    const overdue = rows[0]?.overdue ?? 0;
    if (overdue === 0) return;
    log.warn(
      { overdue },
      'partitions of user_logins are not dropped, because a transaction holds the table open: retrying in five minutes',
    );
  },
});
