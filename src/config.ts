/**
 * All settings, with defaults and ranges. This is the only file of `src/` that reads `process.env`.
 *
 * A test checks the table of settings in README.md against `SPECS`.
 */
import { cleanEnv, makeValidator, str } from 'envalid';
import { databaseAt, type DatabaseSettings } from './database/url.ts';
import { SettingError } from './errors.ts';
import { regionOfQueue } from './queue/region.ts';

/** Where the queue is. Endpoint, region and credentials are absent if the SDK finds them. */
export interface QueueSettings {
  url: string;
  endpoint?: string;
  region?: string;
  credentials?: { accessKeyId: string; secretAccessKey: string };
}

export interface Settings {
  database: DatabaseSettings | undefined;
  queue: QueueSettings | undefined;
  kek: { text: string } | { file: string } | undefined;
  waitTimeSeconds: number;
  visibilityTimeoutSeconds: number;
  maxPollers: number;
  batchRows: number;
  batchBytes: number;
  batchMs: number;
  maxStagedRows: number;
  retryTimeoutSeconds: number;
  workerConcurrency: number;
  shutdownGraceSeconds: number;
  logLevel: string;
}

/** What is wrong with a value, without quoting it, as envalid's own errors do. */
class OutOfRange extends Error {}

const wholeNumber = (low: number, high: number) =>
  makeValidator<number>((input) => {
    const value = Number(input);
    if (!Number.isInteger(value) || value < low || value > high) {
      throw new OutOfRange(`must be a whole number from ${low} to ${high}`);
    }
    return value;
  });

const oneOf = (...values: string[]) =>
  makeValidator<string>((input) => {
    if (!values.includes(input)) throw new OutOfRange(`must be one of ${values.join(', ')}`);
    return input;
  });

const url = (...protocols: string[]) =>
  makeValidator<string>((input) => {
    if (!URL.canParse(input) || !protocols.includes(new URL(input).protocol)) {
      throw new OutOfRange(`must be a URL that begins with ${protocols.map((p) => `${p}//`).join(' or ')}`);
    }
    return input;
  });

const postgresUrl = makeValidator<DatabaseSettings>(databaseAt);
const httpUrl = url('http:', 'https:');

/** The settings, in the order of README.md's table. */
export const SPECS = {
  DATABASE_URL: postgresUrl({ default: undefined }),
  SQS_QUEUE_URL: httpUrl({ default: undefined }),
  AWS_ENDPOINT_URL_SQS: httpUrl({ default: undefined }),
  MASKING_KEK: str({ default: undefined }),
  MASKING_KEK_FILE: str({ default: undefined }),
  SQS_WAIT_TIME_SECONDS: wholeNumber(1, 20)({ default: 20 }),
  SQS_VISIBILITY_TIMEOUT_SECONDS: wholeNumber(5, 43_200)({ default: 300 }),
  SQS_MAX_POLLERS: wholeNumber(1, 64)({ default: 8 }),
  LOAD_BATCH_ROWS: wholeNumber(1, 10_000)({ default: 2_000 }),
  LOAD_BATCH_BYTES: wholeNumber(1_024, 67_108_864)({ default: 4_194_304 }),
  LOAD_BATCH_MS: wholeNumber(1, 60_000)({ default: 250 }),
  LOAD_MAX_STAGED_ROWS: wholeNumber(1, 10_000_000)({ default: 100_000 }),
  LOAD_RETRY_TIMEOUT_SECONDS: wholeNumber(1, 86_400)({ default: 600 }),
  WORKER_CONCURRENCY: wholeNumber(1, 64)({ default: 2 }),
  SHUTDOWN_GRACE_SECONDS: wholeNumber(1, 3_600)({ default: 30 }),
  LOG_LEVEL: oneOf('fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent')({ default: 'info' }),
};

/**
 * Reads and checks all settings.
 *
 * @param environment the variables; `process.env`, except in tests
 * @throws {SettingError} naming each variable that is out of range
 */
export function readSettings(environment: NodeJS.ProcessEnv = process.env): Settings {
  // In compose files and CI, an empty variable means that it is not set.
  const given = Object.fromEntries(Object.entries(environment).filter(([, value]) => value !== ''));
  const env = cleanEnv(given, SPECS, {
    reporter: ({ errors }) => {
      const faults = Object.entries(errors).map(([name, error]) => `${name} ${faultOf(error)}`);
      if (faults.length > 0) throw new SettingError(faults.join('; '));
    },
  });
  if (env.MASKING_KEK !== undefined && env.MASKING_KEK_FILE !== undefined) {
    throw new SettingError('MASKING_KEK and MASKING_KEK_FILE are both set: keep one of them');
  }
  return {
    database: env.DATABASE_URL,
    queue: queueOf(env, given),
    kek: kekOf(env),
    waitTimeSeconds: waitTimeOf(env.SHUTDOWN_GRACE_SECONDS, env.SQS_WAIT_TIME_SECONDS, given),
    visibilityTimeoutSeconds: env.SQS_VISIBILITY_TIMEOUT_SECONDS,
    maxPollers: env.SQS_MAX_POLLERS,
    batchRows: env.LOAD_BATCH_ROWS,
    batchBytes: env.LOAD_BATCH_BYTES,
    batchMs: env.LOAD_BATCH_MS,
    maxStagedRows: env.LOAD_MAX_STAGED_ROWS,
    retryTimeoutSeconds: env.LOAD_RETRY_TIMEOUT_SECONDS,
    workerConcurrency: env.WORKER_CONCURRENCY,
    shutdownGraceSeconds: env.SHUTDOWN_GRACE_SECONDS,
    logLevel: env.LOG_LEVEL,
  };
}

/**
 * The width for output that people read: that of the terminal, or else `COLUMNS`, which watch(1) sets for its command.
 *
 * @returns columns, or undefined if nothing limits the width
 */
export function columnsOf(
  stream: { columns?: number },
  environment: NodeJS.ProcessEnv = process.env,
): number | undefined {
  // A terminal without a size has 0 columns.
  return stream.columns || Number(/^[1-9]\d{0,3}$/.exec(environment['COLUMNS'] ?? '')?.[0]) || undefined;
}

/** @throws {SettingError} if `DATABASE_URL` is not set */
export function requireDatabase(settings: Settings): DatabaseSettings {
  if (settings.database !== undefined) return settings.database;
  throw new SettingError(missing('DATABASE_URL'));
}

/** @throws {SettingError} if `SQS_QUEUE_URL` is not set, names no queue, or names a FIFO queue */
export function requireQueue(settings: Settings): QueueSettings {
  if (settings.queue === undefined) throw new SettingError(missing('SQS_QUEUE_URL'));
  const { pathname } = new URL(settings.queue.url);
  if (pathname === '/') {
    throw new SettingError(
      'SQS_QUEUE_URL names no queue: copy its URL, as https://sqs.REGION.amazonaws.com/ACCOUNT/NAME',
    );
  }
  if (/\.fifo\/*$/.test(pathname)) {
    throw new SettingError(
      'SQS_QUEUE_URL names a FIFO queue: masked-logins loads in parallel and keeps no order, so it supports only standard queues',
    );
  }
  return settings.queue;
}

/** The part of `SHUTDOWN_GRACE_SECONDS` that is kept for staging the messages of the last poll, in seconds. */
const KEPT_FOR_FLUSH = 2;

/**
 * A poll must end within the time for stopping. A long default is shortened. A long value that was set is an error,
 * because whoever set it would not notice that it is shortened.
 */
function waitTimeOf(graceSeconds: number, waitTimeSeconds: number, given: NodeJS.ProcessEnv): number {
  const longest = Math.max(1, graceSeconds - KEPT_FOR_FLUSH);
  if (waitTimeSeconds <= longest) return waitTimeSeconds;
  if (given['SQS_WAIT_TIME_SECONDS'] === undefined) return longest;
  throw new SettingError(
    `SQS_WAIT_TIME_SECONDS must be at most SHUTDOWN_GRACE_SECONDS less ${KEPT_FOR_FLUSH}, which is ${longest}: ` +
      'polls are never aborted, so stopping waits for them; lower the first or raise the second',
  );
}

function queueOf(
  env: { SQS_QUEUE_URL: string | undefined; AWS_ENDPOINT_URL_SQS: string | undefined },
  given: NodeJS.ProcessEnv,
): QueueSettings | undefined {
  if (env.SQS_QUEUE_URL === undefined) return undefined;
  const queue: QueueSettings = { url: env.SQS_QUEUE_URL };
  const endpoint = env.AWS_ENDPOINT_URL_SQS ?? given['AWS_ENDPOINT_URL'];
  const region = regionFor(env.SQS_QUEUE_URL, given);
  if (endpoint !== undefined) queue.endpoint = endpoint;
  if (region !== undefined) queue.region = region;
  return queue;
}

function kekOf(env: {
  MASKING_KEK: string | undefined;
  MASKING_KEK_FILE: string | undefined;
}): Settings['kek'] {
  if (env.MASKING_KEK !== undefined) return { text: env.MASKING_KEK };
  return env.MASKING_KEK_FILE === undefined ? undefined : { file: env.MASKING_KEK_FILE };
}

/**
 * The region to sign requests for. If it is not the queue's region, AWS answers that the credentials are wrong.
 *
 * @throws {SettingError} if a variable and the queue's URL name different regions
 */
function regionFor(queueUrl: string, given: NodeJS.ProcessEnv): string | undefined {
  const variable = given['AWS_REGION'] === undefined ? 'AWS_DEFAULT_REGION' : 'AWS_REGION';
  const set = given[variable];
  const { region, isAws } = regionOfQueue(queueUrl);
  if (isAws && set !== undefined && set !== region) {
    const named = /^[a-z0-9-]{1,30}$/.test(set) ? set : 'no region';
    throw new SettingError(
      `${variable} is ${named} and the queue in SQS_QUEUE_URL is in ${region}: remove ${variable}, or set it to ${region}`,
    );
  }
  return set ?? region;
}

function missing(variable: string): string {
  return `${variable} is not set: set it, or, in a checkout, start a local stack with: npm run stack`;
}

function faultOf(error: unknown): string {
  return error instanceof OutOfRange || error instanceof SettingError
    ? error.message
    : 'is not one of its possible values';
}
