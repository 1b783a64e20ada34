import { randomBytes } from 'node:crypto';
import { LOGINS, type World } from './world.ts';

/** A set-up that is wrong in one place. */
export interface WrongSetUp {
  title: string;
  /** A command and its arguments. */
  run: string;
  /** What is spoilt: variables in place of the right ones; '' is one that is not set. */
  with?: (world: World) => Record<string, string> | Promise<Record<string, string>>;
  /** The exit code: 2 for a wrong call or setting, 1 for anything else. */
  code: 1 | 2;
  /** Names of settings, options, roles or places that the line has to hold. */
  names: string[];
  /** Warnings in the log may come before the line: it tries again. */
  warns?: true;
}

const CLOSED = '127.0.0.1:1';
const key = () => randomBytes(32).toString('hex');

/** The same fault for several commands. */
function each(commands: string[], of: (command: string) => Omit<WrongSetUp, 'run'>): WrongSetUp[] {
  return commands.map((run) => ({ run, ...of(run) }));
}

/** The connection string of whoever runs the command, spoilt. */
const spoilt = (run: string, spoil: (url: URL) => void) => (world: World) => ({
  DATABASE_URL: world.url(LOGINS[run.split(' ')[0]!]!, spoil),
});

const USERS_OF_DATABASE = ['load', 'worker --once', 'status', 'keys list', 'migrate'];
const USERS_OF_QUEUE = ['load', 'worker --once', 'status', 'send --count 1'];

const SETTINGS: WrongSetUp[] = [
  ...each(USERS_OF_DATABASE, () => ({
    title: 'no database is named',
    with: () => ({ DATABASE_URL: '' }),
    code: 2,
    names: ['DATABASE_URL'],
  })),
  ...each(USERS_OF_QUEUE, () => ({
    title: 'no queue is named',
    with: () => ({ SQS_QUEUE_URL: '' }),
    code: 2,
    names: ['SQS_QUEUE_URL'],
  })),
  ...[
    ['load', 'another kind of database', { DATABASE_URL: 'mysql://somebody:opensesame@h/d' }],
    [
      'status',
      'a connection string of the other kind',
      { DATABASE_URL: 'host=h user=somebody password=opensesame' },
    ],
    // connect
    [
      'load',
      'a password that is not percent-encoded',
      { DATABASE_URL: 'postgres://somebody:open#sesame/x@h/d' },
    ],
    // connect
    [
      'migrate',
      'a password with a stray per cent sign',
      { DATABASE_URL: 'postgres://somebody:opensesame%@h/d' },
    ],
    ['load', "the queue's name in place of its URL", { SQS_QUEUE_URL: 'login-queue' }],
    ['load', 'an endpoint without its scheme', { AWS_ENDPOINT_URL_SQS: 'localhost:4566' }],
    ['load', 'a batch of no rows', { LOAD_BATCH_ROWS: '0' }],
    ['load', 'a time with its unit', { LOAD_RETRY_TIMEOUT_SECONDS: '10m' }],
    ['worker', 'a level that is none', { LOG_LEVEL: 'loud' }],
    [
      'load',
      'polls longer than stopping may take',
      { SQS_WAIT_TIME_SECONDS: '20', SHUTDOWN_GRACE_SECONDS: '10' },
    ],
    ['worker', 'both settings for the key', { MASKING_KEK: key(), MASKING_KEK_FILE: '/nowhere' }],
  ].map(([run, title, variables]) => ({
    run: run as string,
    title: title as string,
    with: () => variables as Record<string, string>,
    code: 2 as const,
    names: Object.keys(variables as object),
  })),
  ...each(USERS_OF_QUEUE, () => ({
    title: 'a FIFO queue',
    with: ({ sqs }) => ({ SQS_QUEUE_URL: `${sqs.queue.url}.fifo` }),
    code: 2,
    names: ['SQS_QUEUE_URL', 'FIFO'],
  })),
  {
    title: 'a FIFO queue, with a slash at its end', // connect
    run: 'load',
    with: ({ sqs }) => ({ SQS_QUEUE_URL: `${sqs.queue.url}.fifo/` }),
    code: 2,
    names: ['SQS_QUEUE_URL', 'FIFO'],
  },
  {
    title: "another region than the queue's", // connect
    run: 'load',
    with: () => ({
      SQS_QUEUE_URL: 'https://sqs.eu-west-1.amazonaws.com/000000000000/login-queue',
      AWS_ENDPOINT_URL_SQS: '',
      AWS_REGION: 'us-east-1',
    }),
    code: 2,
    names: ['AWS_REGION', 'SQS_QUEUE_URL'],
  },
  {
    title: 'a stack whose file is broken',
    run: 'status',
    with: ({ brokenStack }) => ({ DATABASE_URL: '', LOCAL_DIR: brokenStack }),
    code: 2,
    names: ['LOCAL_DIR'],
  },
];

const KEYS: WrongSetUp[] = [
  ...[
    ['no hexadecimal digits', { MASKING_KEK: 'zz' }],
    ['a key that is too short', { MASKING_KEK: key().slice(2) }],
  ].map(([title, variables]) => ({
    run: 'worker --once', // audit, while the database is unsealed
    title: title as string,
    with: () => variables as Record<string, string>,
    code: 2 as const,
    names: ['MASKING_KEK'],
  })),
  ...each(['worker --once', 'keys unseal'], () => ({
    title: 'a file for the key that is not there', // audit, while the database is unsealed
    with: ({ files }) => ({ MASKING_KEK: '', MASKING_KEK_FILE: files.missing }),
    code: 2,
    names: ['MASKING_KEK_FILE'],
  })),
  ...each(['worker --once', 'keys unseal'], () => ({
    title: 'a file that holds something else', // audit, while the database is unsealed
    with: ({ files }) => ({ MASKING_KEK: '', MASKING_KEK_FILE: files.noKek }),
    code: 2,
    names: ['MASKING_KEK_FILE'],
  })),
  ...each(['worker --once', 'keys unseal'], () => ({
    title: "the key in place of the file's name", // audit
    with: () => ({ MASKING_KEK: '', MASKING_KEK_FILE: key() }),
    code: 2,
    names: ['MASKING_KEK_FILE'],
  })),
  ...each(['worker --once', 'worker', 'keys unseal'], () => ({
    title: "another database's key", // audit, while the database is unsealed
    with: () => ({ MASKING_KEK: key() }),
    code: 1,
    names: ['MASKING_KEK'],
  })),
  {
    title: 'no key to unseal with',
    run: 'keys unseal',
    with: ({ sealed }) => ({ DATABASE_URL: sealed.urls.custodian }),
    code: 2,
    names: ['MASKING_KEK'],
  },
  {
    title: 'a sealed database',
    run: 'keys rotate',
    with: ({ sealed }) => ({ DATABASE_URL: sealed.urls.custodian }),
    code: 1,
    names: ['ML001'],
  },
];

const CALLS: WrongSetUp[] = [
  ['load --folow', '--folow'],
  ['worker --once --bogus', '--bogus'],
  ['migrate --fresh', '--fresh'],
  ['keys lst', 'lst'],
  ['keys list all', 'list'],
  ['keys rotate --purpose both', '--purpose'],
  ['keys rotate --field user_id', '--field'],
  ['keys destroy token one', 'version'],
  ['keys destroy token', 'version'],
  ['keys rewrap', '--new-kek-file'],
  ['keys rewrap --new-kek-file /nowhere', '--new-kek-file'],
  ['send --count 0', '--count'],
  ['send --count 1 --file x', '--file'],
  ['send --file /nowhere', '--file'],
  ['stack --clean', '--clean'],
].map(([run, name]) => ({ run: run!, title: 'a wrong call', code: 2, names: [name!] }));

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
    ['worker --once', 'loader', 'logins_worker'],
    ['worker --once', 'analyst', 'logins_worker'],
    ['status', 'loader', 'logins_auditor'],
    ['status', 'analyst', 'logins_auditor'],
    ['keys list', 'analyst', 'logins_custodian'],
    ['keys rotate', 'auditor', 'logins_custodian'],
    ['migrate', 'analyst', 'CREATEROLE'],
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
    with: () => ({ AWS_REGION: '' }),
    code: 1,
    names: ['AWS_REGION'],
  },
  ...[
    ['InvalidClientTokenId', 'AWS_ACCESS_KEY_ID'],
    ['InvalidSignatureException', 'AWS_SECRET_ACCESS_KEY'], // connect
    ['ExpiredToken', 'credentials'],
    ['AccessDenied', 'sqs:ReceiveMessage'],
    ['KmsAccessDenied', 'kms:Decrypt'],
    ['KmsNotFound', 'key'], // connect
    ['KmsDisabled', 'key'], // connect
  ].map(([type, name]) => ({
    title: `an SQS that answers ${type}`,
    run: 'load',
    with: (world: World) => world.refusing(type!),
    code: 1 as const,
    names: [name!],
  })),
];

export const WRONG_SET_UPS = [...SETTINGS, ...KEYS, ...CALLS, ...DATABASES, ...QUEUES];
