import { each, USERS_OF_DATABASE, type WrongSetUp } from './set-ups.ts';
import { LOGINS, type World } from './world.ts';

const CLOSED = '127.0.0.1:1';

/** The connection string of whoever runs the command, spoilt. */
const spoilt = (run: string, spoil: (url: URL) => void) => (world: World) => ({
  DATABASE_URL: world.url(LOGINS[run.split(' ')[0]!]!, spoil),
});

const DATABASES: WrongSetUp[] = [
  ...each(USERS_OF_DATABASE, (run) => ({
    title: 'a port that nobody listens on', // connect
    with: spoilt(run, (url) => (url.host = CLOSED)),
    code: 1,
    names: [CLOSED],
    ...(run === 'load' && { warns: true }),
  })),
  ...each(USERS_OF_DATABASE, (run) => ({
    title: 'a host that does not exist', // connect
    with: spoilt(run, (url) => (url.host = 'nowhere.invalid')),
    code: 1,
    names: ['nowhere.invalid'],
    ...(run === 'load' && { warns: true }),
  })),
  ...each(USERS_OF_DATABASE, (run) => ({
    title: 'a wrong password', // connect
    with: spoilt(run, (url) => (url.password = 'opensesame')),
    code: 1,
    names: ['DATABASE_URL'],
  })),
  ...each(USERS_OF_DATABASE, (run) => ({
    title: 'no password', // connect
    with: spoilt(run, (url) => (url.password = '')),
    code: 1,
    names: ['DATABASE_URL'],
  })),
  ...each(['load', 'migrate'], (run) => ({
    title: 'a user that does not exist', // connect
    with: spoilt(run, (url) => (url.username = 'somebody')),
    code: 1,
    names: ['DATABASE_URL'],
  })),
  ...each(USERS_OF_DATABASE, (run) => ({
    title: 'a database that does not exist', // connect
    with: spoilt(run, (url) => (url.pathname = '/nothing_here')),
    code: 1,
    names: ['DATABASE_URL'],
  })),
  ...each(['load', 'worker --once', 'status', 'keys list'], () => ({
    title: 'a database that is not migrated',
    with: ({ notMigrated }) => ({ DATABASE_URL: notMigrated }),
    code: 1,
    names: ['migrate'],
  })),
  ...each(USERS_OF_DATABASE, (run) => ({
    title: 'TLS on a server that has none', // connect
    with: spoilt(run, (url) => url.searchParams.set('sslmode', 'require')),
    code: 1,
    names: ['sslmode'],
  })),
  ...each(USERS_OF_DATABASE, (run) => ({
    title: 'a root certificate that is not there', // connect
    with: spoilt(run, (url) => {
      url.searchParams.set('sslmode', 'verify-full');
      url.searchParams.set('sslrootcert', '/nowhere/opensesame.pem');
    }),
    code: 2,
    names: ['sslrootcert'],
  })),
  ...each(USERS_OF_DATABASE, () => ({
    title: 'Postgres 15',
    with: ({ tooOld }) => ({ DATABASE_URL: tooOld }),
    code: 1,
    names: ['15', '16'],
  })),
  {
    title: 'a database that is not UTF8', // connect
    run: 'migrate',
    with: ({ notUtf8 }) => ({ DATABASE_URL: notUtf8 }),
    code: 1,
    names: ['UTF8'],
  },
  ...[
    // connect
    ['load', 'worker', 'logins_loader'],
    ['load', 'analyst', 'logins_loader'],
    ['worker --once', 'loader', 'logins_worker'],
    ['worker --once', 'analyst', 'logins_worker'],
    ['status', 'loader', 'logins_auditor'],
    ['status', 'analyst', 'logins_auditor'],
    ['keys list', 'analyst', 'logins_custodian'],
    ['keys rotate', 'auditor', 'logins_custodian'],
    ['migrate', 'analyst', 'logins_owner'],
  ].map(([run, login, role]) => ({
    title: `the login of the ${login}`,
    run: run!,
    with: ({ db }: World) => ({ DATABASE_URL: db.urls[login as 'worker'] }),
    code: 1 as const,
    names: [role!],
  })),
  { title: 'a key that is not there', run: 'keys destroy cipher 99', code: 1, names: ['ML007'] },
];

const QUEUES: WrongSetUp[] = [
  ...each(['load', 'status', 'send --count 1'], () => ({
    title: 'a queue that does not exist',
    with: ({ sqs }) => ({ SQS_QUEUE_URL: `${sqs.queue.url}-other` }),
    code: 1,
    names: ['SQS_QUEUE_URL'],
  })),
  ...each(['load', 'status', 'send --count 1'], (run) => ({
    title: 'an endpoint that nobody listens on', // connect
    with: () => ({ AWS_ENDPOINT_URL_SQS: `http://${CLOSED}` }),
    code: 1,
    names: [CLOSED],
    ...(run === 'load' && { warns: true }),
  })),
  ...each(['load', 'status', 'send --count 1'], () => ({
    title: 'no credentials',
    with: () => ({ AWS_ACCESS_KEY_ID: '', AWS_SECRET_ACCESS_KEY: '' }),
    code: 1,
    names: ['AWS_ACCESS_KEY_ID'],
  })),
  {
    title: 'no region',
    run: 'load',
    // An address that does not name it.
    with: () => ({ AWS_REGION: '', SQS_QUEUE_URL: `http://${CLOSED}/000000000000/login-queue` }),
    code: 1,
    names: ['AWS_REGION'],
  },
  ...[
    ['InvalidClientTokenId', 'AWS_ACCESS_KEY_ID'],
    ['InvalidSignatureException', 'AWS_SECRET_ACCESS_KEY'], // connect
    ['ExpiredToken', 'credentials'],
    ['AccessDenied', 'sqs:ReceiveMessage'],
    ['KmsAccessDenied', 'kms:Decrypt'],
    ['KmsNotFound', 'KMS'], // connect
    ['KmsDisabled', 'KMS'], // connect
  ].map(([type, name]) => ({
    title: `an SQS that answers ${type}`,
    run: 'load',
    with: (world: World) => world.refusing(type!),
    code: 1 as const,
    names: [name!],
  })),
];

export const WRONG_SERVICES = [...DATABASES, ...QUEUES];
