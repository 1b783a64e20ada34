import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chownSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { childEnvironment, MASKED_LOGINS } from '../../local/environment.ts';
import { placeForData, serverUser } from '../../local/postgres/os-user.ts';
import { freePort } from '../../local/ports.ts';
import { startPostgres, type Postgres } from '../../local/postgres/postgres.ts';
import { refusal, startFakeSqs, type FakeSqs } from '../queue/fake-sqs.ts';
import { runCommandLine, type Outcome } from '../support/commands.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { until } from '../support/pipeline.ts';
import { makeTestDirectory, removeTestDirectory } from '../support/test-directory.ts';

/** A person waits no longer for a refusal; what is measured is a hang, not how fast a busy machine is. */
const AT_ONCE_MS = 20_000;
const COMMANDS = ['load', 'load --follow', 'worker', 'worker --once', 'status', 'keys list', 'migrate'];

let db: TestDatabase;
let sqs: FakeSqs;
let answer: () => ReturnType<typeof refusal>;
let closedPort: number;
beforeAll(async () => {
  db = await createTestDatabase();
  answer = () => ({ body: {} });
  sqs = await startFakeSqs(() => answer());
  closedPort = await freePort();
});
afterAll(async () => {
  await sqs.stop();
  await db.drop();
});

const variables = (DATABASE_URL: string, more: Record<string, string> = {}) => ({
  DATABASE_URL,
  SQS_QUEUE_URL: sqs.queue.url,
  AWS_ENDPOINT_URL_SQS: sqs.queue.endpoint!,
  AWS_REGION: 'eu-west-1',
  AWS_ACCESS_KEY_ID: 'test',
  AWS_SECRET_ACCESS_KEY: 'test',
  ...more,
});

/** Two at a time: the machine that tests may have no more cores. */
async function each(commands: string[], environment: Record<string, string>): Promise<[string, Outcome][]> {
  const outcomes: [string, Outcome][] = [];
  for (let at = 0; at < commands.length; at += 2)
    outcomes.push(
      ...(await Promise.all(
        commands
          .slice(at, at + 2)
          .map(async (line): Promise<[string, Outcome]> => [line, await runCommandLine(line, environment)]),
      )),
    );
  return outcomes;
}

/** One line, at once, that says more than a code and nothing of the connection string but where it leads. */
function expectOneLine([line, { code, stderr, ms }]: [string, Outcome], exitCode = 1): string {
  const lines = stderr.trim().split('\n');
  expect({ line, code, lines: lines.length }).toEqual({ line, code: exitCode, lines: 1 });
  expect(ms).toBeLessThan(AT_ONCE_MS);
  expect(lines[0]!.length).toBeGreaterThan(50);
  expect(lines[0]).not.toMatch(/hunter2|local_\w+/);
  return lines[0]!;
}

function urlWith(change: (url: URL) => void, login: keyof TestDatabase['urls'] = 'loader'): string {
  const url = new URL(db.urls[login]);
  change(url);
  return url.toString();
}

/** Where the tests' database is, as a message may say it. */
const place = (database = db.name) => `${new URL(db.urls.loader).host}/${database}`;

describe('a database that cannot be used ends every command at once, with one line', () => {
  test('a wrong password', async () => {
    const url = urlWith((u) => (u.password = 'hunter2'));
    for (const outcome of await each(COMMANDS, variables(url)))
      expect(expectOneLine(outcome)).toContain(place());
  });

  test('no password', async () => {
    const url = urlWith((u) => (u.password = ''));
    for (const outcome of await each(COMMANDS, variables(url, { HOME: '/nowhere' })))
      expect(expectOneLine(outcome)).toContain(place());
  });

  test('a database that is not there', async () => {
    const url = urlWith((u) => (u.pathname = '/nothing_here'));
    for (const outcome of await each(COMMANDS, variables(url)))
      expect(expectOneLine(outcome)).toContain(place('nothing_here'));
  });

  test('a server that speaks no TLS', async () => {
    const url = urlWith((u) => (u.search = '?sslmode=require'));
    for (const outcome of await each(COMMANDS, variables(url)))
      expect(expectOneLine(outcome)).toContain('sslmode');
  });

  test('a certificate file that is not there, which is a wrong setting', async () => {
    const url = urlWith((u) => (u.search = '?sslmode=verify-full&sslrootcert=/no/such/ca.crt'));
    for (const outcome of await each(['load', 'migrate'], variables(url)))
      expect(expectOneLine(outcome, 2)).toMatch(/DATABASE_URL.*sslrootcert/);
  });

  test('a piece of a password that is not percent-encoded, which is a wrong setting', async () => {
    const url = db.urls.loader.replace(/:[^:@]*@/, ':12#hunter2@');
    for (const outcome of await each(['worker', 'status'], variables(url))) expectOneLine(outcome, 2);
  });

  test.each([
    ['worker', 'logins_worker', 'analyst'],
    ['worker --once', 'logins_worker', 'loader'],
    ['load', 'logins_loader', 'analyst'],
    ['load --follow', 'logins_loader', 'custodian'],
    ['status', 'logins_worker, logins_custodian or logins_auditor', 'loader'],
    ['status', 'logins_worker, logins_custodian or logins_auditor', 'analyst'],
    ['keys list', 'logins_custodian or logins_auditor', 'analyst'],
    ['keys rotate', 'logins_custodian', 'analyst'],
  ] as const)('%s is told that it needs %s, as %s', async (line, roles, login) => {
    const text = expectOneLine([line, await runCommandLine(line, variables(db.urls[login]))]);
    expect(text).toMatch(new RegExp(`grant it ${roles}$`));
  });
});

const closed = () => urlWith((u) => (u.port = String(closedPort)));
const unknown = () => urlWith((u) => (u.hostname = 'db.invalid'));

describe('a server that may come back', () => {
  test.each([
    ['nobody listens', closed],
    ['nobody knows the host', unknown],
  ])('%s: what does not wait ends with one line', async (_, url) => {
    const at = new URL(url()).host;
    for (const outcome of await each(['status', 'keys list', 'worker --once', 'migrate'], variables(url())))
      expect(expectOneLine(outcome)).toContain(at);
  });

  test.each(['load', 'load --follow', 'worker'])(
    '%s says what it waits for, and says it once',
    async (line) => {
      const child = spawn(process.execPath, [MASKED_LOGINS, ...line.split(' ')], {
        env: childEnvironment(variables(closed())),
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      let output = '';
      child.stderr.on('data', (chunk) => (output += String(chunk)));
      await until(() => output.includes('\n'));
      // Several attempts: each comes later than the one before, at the latest after 5 seconds.
      await sleep(3_000);
      child.kill('SIGKILL');
      await once(child, 'close');
      const lines = output.trim().split('\n');
      expect(lines).toHaveLength(1);
      expect(lines[0]).toContain(new URL(closed()).host);
      expect(lines[0]).toContain('nothing listens');
    },
  );
});

const openssl = spawnSync('openssl', ['version']).status === 0;

// Shown as skipped where there is no openssl to make a certificate with.
describe.skipIf(!openssl)('a server with a certificate that nobody vouches for', () => {
  let directory: string;
  let socketDirectory: string;
  let postgres: Postgres;
  beforeAll(async () => {
    directory = makeTestDirectory();
    socketDirectory = placeForData(directory);
    const [crt, key] = ['server.crt', 'server.key'].map((name) => path.join(directory, name)) as [
      string,
      string,
    ];
    execFileSync(
      'openssl',
      // prettier-ignore
      ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-subj', '/CN=localhost', '-days', '2',
       '-addext', 'subjectAltName=DNS:localhost', '-keyout', key, '-out', crt],
      { stdio: 'ignore' },
    );
    const user = serverUser();
    if (user !== undefined) chownSync(key, user.uid, user.gid);
    postgres = await startPostgres({
      dataDirectory: socketDirectory,
      logFile: path.join(directory, 'postgres.log'),
      superuserPassword: 'hunter2',
      settings: {
        // Only the server's user, and root, may enter it.
        unix_socket_directories: socketDirectory,
        ssl: 'on',
        ssl_cert_file: crt,
        ssl_key_file: key,
      },
    });
  });
  afterAll(async () => {
    await postgres.stop();
    await removeTestDirectory(directory);
  });

  test('ends every command at once, with one line', async () => {
    const url = `${postgres.url('postgres')}?sslmode=require`;
    for (const outcome of await each(COMMANDS, variables(url)))
      expect(expectOneLine(outcome)).toMatch(/sslrootcert.*NODE_EXTRA_CA_CERTS/);
  });

  test('is reached through its socket, as libpq reaches it', async () => {
    for (const url of [
      `postgres://postgres:hunter2@/postgres?host=${socketDirectory}&port=${postgres.port}`,
      `postgres://postgres:hunter2@:${postgres.port}/postgres?host=${encodeURIComponent(socketDirectory)}`,
    ]) {
      const text = expectOneLine(['status', await runCommandLine('status', variables(url))]);
      expect(text).toContain('masked-logins migrate');
    }
    const nowhere = 'postgres://postgres:hunter2@/postgres?host=/nowhere';
    const text = expectOneLine(['status', await runCommandLine('status', variables(nowhere))]);
    expect(text).toContain('/nowhere:5432/postgres');
  });

  test('is taken where its certificate is named, and refused under a name that it is not for', async () => {
    const ca = `?sslmode=verify-full&sslrootcert=${path.join(directory, 'server.crt')}`;
    const byName = `${postgres.url('postgres').replace('127.0.0.1', 'localhost')}${ca}`;
    const named = expectOneLine(['status', await runCommandLine('status', variables(byName))]);
    expect(named).toContain('masked-logins migrate');
    const byAddress = `${postgres.url('postgres')}${ca}`;
    const other = expectOneLine(['status', await runCommandLine('status', variables(byAddress))]);
    expect(other).toContain('another host');
  });
});

const outcomes = async () => [
  ...(await each(['load', 'load --follow'], variables(db.urls.loader))),
  ...(await each(['status', 'send --count 1'], variables(db.urls.worker))),
];

describe('a queue that cannot be used ends every command at once, with one line', () => {
  test.each([
    ['InvalidSignatureException', 403],
    ['KmsDisabled', 400],
  ])('%s (%i)', async (type, status) => {
    answer = () => refusal(type, status);
    for (const outcome of await outcomes()) expect(expectOneLine(outcome)).not.toContain(type);
  });

  test('what AWS does not allow is named for each command', async () => {
    answer = () => refusal('AccessDenied', 403);
    const texts = (await outcomes()).map(([line, outcome]) => [line, expectOneLine([line, outcome])]);
    expect(Object.fromEntries(texts)).toMatchObject({
      load: expect.stringContaining('sqs:ReceiveMessage'),
      status: expect.stringMatching(/allow sqs:GetQueueAttributes on it$/),
      'send --count 1': expect.stringContaining('sqs:SendMessage'),
    });
  });

  test('another region than the queue’s, which is a wrong setting', async () => {
    const environment = variables(db.urls.loader, {
      SQS_QUEUE_URL: 'https://sqs.eu-west-1.amazonaws.com/123456789012/logins',
      AWS_REGION: 'us-east-1',
    });
    for (const outcome of await each(['load', 'worker'], environment))
      expect(expectOneLine(outcome, 2)).toMatch(/us-east-1.*eu-west-1/);
  });
});

test('a queue that nobody answers for is told by its host', async () => {
  const endpoint = `http://127.0.0.1:${closedPort}`;
  const environment = variables(db.urls.worker, {
    AWS_ENDPOINT_URL_SQS: endpoint,
    SQS_QUEUE_URL: `${endpoint}/0/logins`,
  });
  const text = expectOneLine(['status', await runCommandLine('status', environment)]);
  expect(text).toContain(`127.0.0.1:${closedPort}`);
  expect(text).toContain('SQS_QUEUE_URL');
});
