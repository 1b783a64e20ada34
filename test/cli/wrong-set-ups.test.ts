/**
 * Somebody who sets something up wrongly reads one line that says what is wrong and what to do. Each set-up is right but
 * for one place, and runs the real command as a process of its own.
 */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { complaints, run } from './commands.ts';
import { WRONG_SERVICES } from './service-set-ups.ts';
import { WRONG_BY_ITSELF, type WrongSetUp } from './set-ups.ts';
import { LOGINS, startWorld, type World } from './world.ts';

const WRONG_SET_UPS = [...WRONG_BY_ITSELF, ...WRONG_SERVICES];

/** Nobody waits longer for an answer; in milliseconds, on a busy machine. */
const WITHIN_MS = 40_000;

let world: World;
beforeAll(async () => {
  world = await startWorld();
});
afterAll(() => world.stop());

test('there are more than 25 of them, and each command is among them', () => {
  expect(
    new Set(WRONG_SET_UPS.map(({ title, run: line }) => `${title} ${line.split(' ')[0]}`)).size,
  ).toBeGreaterThan(25);
  const commands = new Set(WRONG_SET_UPS.map(({ run: line }) => line.split(' ')[0]));
  expect([...commands].sort()).toEqual(Object.keys(LOGINS).sort());
});

test.concurrent.each(WRONG_SET_UPS.map((setUp) => [setUp.title, setUp.run, setUp] as const))(
  '%s: %s says so in one line',
  async (_title, line, setUp) => {
    const { variables, outcome } = await runWrong(line, setUp);
    expect(outcome).toMatchObject({ code: setUp.code, stdout: '' });
    const told = complaints(outcome.stderr).filter((each) => setUp.warns !== true || !isWarning(each));
    expect(told).toHaveLength(1);
    expect(setUp.names.filter((name) => !told[0]!.includes(name))).toEqual([]);
    expect(told[0]).not.toMatch(BARE);
    for (const secret of secretsOf(variables)) expect(outcome.stderr).not.toContain(secret);
  },
  WITHIN_MS + 10_000,
);

/** A stack trace's line, or a code or a class of errors and nothing else. */
const BARE = /^\s+at |^(?:\w*Error|E[A-Z]+|SQLSTATE \w{5})$/;

async function runWrong(line: string, setUp: WrongSetUp) {
  const [command, ...args] = line.split(' ');
  const given = { ...world.right(LOGINS[command!]!), ...(await setUp.with?.(world)) };
  const variables = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== ''));
  return { variables, outcome: await run(command!, args, { variables, within: WITHIN_MS }) };
}

function isWarning(line: string): boolean {
  try {
    return (JSON.parse(line) as { level: number }).level === 40;
  } catch {
    return false;
  }
}

/** What may be in nothing that is printed: of a connection string all but host, port and database; keys; credentials. */
function secretsOf(variables: Record<string, string>): string[] {
  const {
    DATABASE_URL = '',
    MASKING_KEK = '',
    MASKING_KEK_FILE = '',
    AWS_SECRET_ACCESS_KEY = '',
  } = variables;
  const secrets = ['opensesame', 'somebody', MASKING_KEK, AWS_SECRET_ACCESS_KEY];
  if (/^[0-9a-f]{64}$/.test(MASKING_KEK_FILE)) secrets.push(MASKING_KEK_FILE);
  if (URL.canParse(DATABASE_URL)) {
    const { username, password, search } = new URL(DATABASE_URL);
    secrets.push(username, password, search);
  }
  return secrets.filter((secret) => secret.length > 2);
}
