/**
 * Turns any error of a library into a line for people: what is wrong with what, which setting is involved, what to do.
 * Like `describe`, it never passes on a library's message.
 */
import type { QueueSettings } from './config.ts';
import { databaseFault, type DatabaseSituation } from './database/faults.ts';
import type { DatabaseSettings } from './database/url.ts';
import { describe, explained, isOurs, type Fault } from './errors.ts';
import { queueFault, type QueueSituation } from './queue/faults.ts';

/** What each command needs of Postgres and SQS, for messages that say what is missing. */
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
  migrate: { roles: 'what docs/operations.md lists for the login that migrates', rights: undefined },
  send: {
    roles: undefined,
    rights: 'sqs:SendMessage on it, and kms:GenerateDataKey and kms:Decrypt on its key if it has one',
  },
} as const;

export type CommandName = keyof typeof NEEDS;

/** What was being done when an error occurred. */
export interface Situation {
  command: CommandName;
  database?: Pick<DatabaseSettings, 'display'> | undefined;
  queue?: QueueSettings | undefined;
}

/** What is known about the database, for `databaseFault`. */
function databaseSituation({ command, database }: Situation): DatabaseSituation {
  return { at: database?.display, roles: NEEDS[command].roles };
}

/** What is known about the queue, for `queueFault`. */
function queueSituation({ command, queue }: Situation): QueueSituation {
  return { at: queue === undefined ? undefined : hostOf(queue), rights: NEEDS[command].rights };
}

/** Host and port of a queue's endpoint. */
export function hostOf(queue: QueueSettings): string {
  return new URL(queue.endpoint ?? queue.url).host;
}

/**
 * What to tell a person about any error of `pg`, the AWS SDK or Node, and whether a retry can fix it.
 *
 * @param situation what was being done, and to what
 */
export function explain(error: unknown, situation: Situation): Fault {
  if (isOurs(error)) return { text: error.message, fatal: true };
  const fault = isOfQueue(error)
    ? queueFault(error, queueSituation(situation))
    : databaseFault(error, databaseSituation(situation));
  return fault ?? { text: unforeseen(error, situation), fatal: false };
}

/**
 * Does work whose errors end the command.
 *
 * @throws {FatalError | SettingError} with one line for people, in place of the error of `work`
 */
export async function explaining<T>(situation: Situation, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw explained(error, explain(error, situation));
  }
}

/** Whether the AWS SDK threw it. The SDK adds `$metadata` to all errors but two that occur before its first attempt. */
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
  return `${command} failed with an unexpected error (${what})${where}: if it happens again, report it`;
}
