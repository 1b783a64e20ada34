import { randomBytes } from 'node:crypto';
import type { World } from './world.ts';

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

const key = () => randomBytes(32).toString('hex');

/** The same fault for several commands. */
export function each(commands: string[], of: (command: string) => Omit<WrongSetUp, 'run'>): WrongSetUp[] {
  return commands.map((run) => ({ run, ...of(run) }));
}

export const USERS_OF_DATABASE = ['load', 'worker --once', 'status', 'keys list', 'migrate'];
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
  ...each(['worker --once', 'worker'], () => ({
    title: "another database's key", // audit, while the database is unsealed
    with: () => ({ MASKING_KEK: key() }),
    code: 1,
    names: ['MASKING_KEK'],
  })),
  ...each(['worker --once', 'worker'], () => ({
    title: "another database's key, of one that is sealed",
    with: ({ sealed }) => ({ DATABASE_URL: sealed.urls.worker, MASKING_KEK: key() }),
    code: 1,
    names: ['MASKING_KEK'],
  })),
  {
    title: "another database's key, of one that is sealed",
    run: 'keys unseal',
    with: ({ sealed }) => ({ DATABASE_URL: sealed.urls.custodian, MASKING_KEK: key() }),
    code: 1,
    names: ['ML002'],
  },
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

/** Wrong by what is set or typed; see `service-set-ups.ts` for what is wrong with Postgres and SQS. */
export const WRONG_BY_ITSELF = [...SETTINGS, ...KEYS, ...CALLS];
