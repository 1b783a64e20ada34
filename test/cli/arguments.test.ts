import { expect, test } from 'vitest';
import { COMMANDS, complaints, run } from './commands.ts';

/** Not one of these may matter to whoever asks for help or mistypes an option. */
const UNUSABLE = {
  LOG_LEVEL: 'loud',
  DATABASE_URL: 'postgres://nobody:hunter2@127.0.0.1:1/nowhere',
  SQS_QUEUE_URL: 'hunter2',
};

const NAMES = [...COMMANDS.keys()];

test('there are commands to try', () => {
  for (const name of ['demo', 'stack', 'send', 'load', 'worker', 'status', 'keys', 'migrate']) {
    expect(NAMES).toContain(name);
  }
  for (const name of ['bench', 'bench:report', 'test:faults', 'migration:commit'])
    expect(NAMES).toContain(name);
});

test.each(NAMES)(
  '%s --help needs no database, no queue and no setting, and does nothing else',
  async (name) => {
    const { code, stdout, stderr } = await run(name, ['--help'], { variables: UNUSABLE });
    expect([code, stderr]).toEqual([0, '']);
    expect(stdout).toContain('--help');
  },
);

test.each(NAMES)(
  '%s with an option that it does not have is a wrong call, told in one line',
  async (name) => {
    const { code, stdout, stderr } = await run(name, ['--bogus'], { variables: UNUSABLE });
    expect([code, stdout]).toEqual([2, '']);
    expect(complaints(stderr)).toEqual([expect.stringContaining('--bogus')]);
  },
);

test.each(NAMES.filter((name) => !['bench', 'keys', 'migration:commit'].includes(name)))(
  '%s with an argument too many is a wrong call, told in one line',
  async (name) => {
    const { code, stdout, stderr } = await run(name, ['bogus'], { variables: UNUSABLE });
    expect([code, stdout]).toEqual([2, '']);
    expect(complaints(stderr)).toHaveLength(1);
  },
);

test.each(['list', 'rotate', 'pause', 'resume', 'destroy', 'rewrap', 'seal', 'unseal'])(
  'keys %s --help needs no database and no setting',
  async (name) => {
    expect(await run('keys', [name, '--help'], { variables: UNUSABLE })).toMatchObject({
      code: 0,
      stderr: '',
    });
  },
);

test('what is typed in a wrong place is not repeated where it may be a key or a connection string', async () => {
  const secrets = ['c0ffee'.repeat(11), `${'Abc1'.repeat(10)}abc=`, 'postgres://u:hunter2@db.example/d'];
  for (const secret of secrets) {
    for (const args of [['unseal', secret], [secret], ['list', `--kek=${secret}`]]) {
      const { code, stderr } = await run('keys', args);
      expect(code).toBe(2);
      expect(complaints(stderr)).toHaveLength(1);
      expect(stderr).not.toContain(secret.replace('=', ''));
    }
  }
});
