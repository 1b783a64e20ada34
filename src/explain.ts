/**
 * The one place that turns whatever a library throws into a line for people: what is wrong with what, which setting
 * it is about, what to do. Like `describe`, it never passes on a library's message.
 */
import type { QueueSettings } from './config.ts';
import { databaseFault, type DatabaseSituation } from './database/faults.ts';
import type { DatabaseSettings } from './database/url.ts';
import { describe, FatalError, SettingError, type Fault } from './errors.ts';
import { queueFault, type QueueSituation } from './queue/faults.ts';

/** What each command needs of Postgres and of SQS: it is told to whoever lacks it. */
const NEEDS = {
  load: {
    roles: 'logins_loader',
    rights:
      'sqs:ReceiveMessage, sqs:ChangeMessageVisibility and sqs:GetQueueAttributes on it, and kms:Decrypt on its key if it has one',
  },
  worker: { roles: 'logins_worker', rights: 'sqs:DeleteMessage on it' },
  status: {
    roles: 'logins_worker, logins_custodian or logins_auditor',
    rights: 'sqs:GetQueueAttributes on it',
  },
  keys: { roles: 'logins_custodian', rights: undefined },
  'keys list': { roles: 'logins_custodian or logins_auditor', rights: undefined },
  migrate: { roles: 'what docs/operations.md says of the login that migrates', rights: undefined },
  send: {
    roles: undefined,
    rights: 'sqs:SendMessage on it, and kms:GenerateDataKey and kms:Decrypt on its key if it has one',
  },
} as const;

export type CommandName = keyof typeof NEEDS;

/** What was being done when something was thrown. */
export interface Situation {
  command: CommandName;
  database?: Pick<DatabaseSettings, 'display'> | undefined;
  queue?: QueueSettings | undefined;
}

/** What is known of the database, for `databaseFault`. */
function databaseSituation({ command, database }: Situation): DatabaseSituation {
  return { at: database?.display, roles: NEEDS[command].roles };
}

/** What is known of the queue, for `queueFault`. */
function queueSituation({ command, queue }: Situation): QueueSituation {
  return { at: queue === undefined ? undefined : hostOf(queue), rights: NEEDS[command].rights };
}

/** Host and port of a queue's endpoint. */
export function hostOf(queue: QueueSettings): string {
  return new URL(queue.endpoint ?? queue.url).host;
}

/**
 * What to tell a person about anything that `pg`, the AWS SDK or Node threw, and whether a retry may heal it.
 *
 * @param situation what was being done, and to what
 */
export function explain(error: unknown, situation: Situation): Fault {
  if (error instanceof SettingError || error instanceof FatalError)
    return { text: error.message, fatal: true };
  const fault = isOfQueue(error)
    ? queueFault(error, queueSituation(situation))
    : databaseFault(error, databaseSituation(situation));
  return fault ?? { text: unforeseen(error, situation), fatal: false };
}

/**
 * Does work whose errors end the command.
 *
 * @throws {FatalError | SettingError} with one line for people, in place of whatever `work` threw
 */
export async function explaining<T>(situation: Situation, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof SettingError) throw error;
    throw new FatalError(explain(error, situation).text);
  }
}

/** Whether the AWS SDK threw it: it notes about each error how often it had tried; two it throws before it tries. */
export function isOfQueue(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  return (
    '$metadata' in error ||
    error.name === 'CredentialsProviderError' ||
    error.message.startsWith('Region is missing')
  );
}

function unforeseen(error: unknown, { command, database, queue }: Situation): string {
  const what = describe(error);
  if (isOfQueue(error) && queue !== undefined) return `SQS at ${hostOf(queue)} answers with ${what}`;
  const where = database === undefined ? '' : `, with the database ${database.display}`;
  return `${command} failed in a way that nobody foresaw (${what})${where}: if it happens again, report it`;
}
