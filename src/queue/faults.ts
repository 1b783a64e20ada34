import { codeOf, type Fault } from '../errors.ts';
import { knownFaults } from '../known-faults.ts';

/** What is known about a queue when something goes wrong with it. */
export interface QueueSituation {
  /** Host and port of the endpoint. */
  at?: string | undefined;
  /** What the credentials have to allow: `sqs:DeleteMessage on the queue`. */
  rights?: string | undefined;
}

const { fatal, passing } = knownFaults<QueueSituation>();

const NO_QUEUE = fatal(
  (at) =>
    `SQS at ${at} has no such queue: check name, account and region in SQS_QUEUE_URL, or create the queue`,
);
const BAD_ADDRESS = fatal(
  () =>
    'SQS does not take the address in SQS_QUEUE_URL: copy it from the queue, as https://sqs.REGION.amazonaws.com/ACCOUNT/NAME',
);
const BAD_CREDENTIALS = fatal(
  (at) =>
    `SQS at ${at} does not accept these AWS credentials: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN or the profile, and that AWS_REGION is the queue's`,
);
const BAD_CLOCK = fatal(
  (at) =>
    `SQS at ${at} finds this machine's clock wrong by more than 5 minutes: set it (NTP), and start again`,
);
const EXPIRED = fatal(() => 'the AWS credentials have expired: get new ones, and start again');
const NOT_ALLOWED = fatal(
  (at, { rights = 'the sqs: actions that README.md lists for this command' }) =>
    `the AWS credentials may not use the queue at ${at}: allow ${rights}`,
);
const NO_KMS_KEY = fatal(
  () =>
    'the KMS key that the queue is encrypted under does not exist: give the queue another one (KmsMasterKeyId)',
);
const KMS_KEY_OFF = fatal(
  () => 'the KMS key that the queue is encrypted under is disabled or about to be deleted: enable it in KMS',
);
const KMS_USAGE = fatal(
  () => "the queue's KMS key is not one that encrypts: give the queue a symmetric key (KmsMasterKeyId)",
);
const KMS_OPT_IN = fatal(
  () => 'this AWS account may not use KMS: subscribe it to KMS, or encrypt the queue with SSE-SQS',
);
const NO_CREDENTIALS = fatal(
  () =>
    'there are no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or run with a role',
);
const NO_REGION = fatal(() => 'the AWS region is not known: set AWS_REGION');
const THROTTLED = passing((at) => `SQS at ${at} throttles the requests: wait`);
const NO_ANSWER = passing(
  (at) =>
    `SQS at ${at} does not answer: check SQS_QUEUE_URL, AWS_ENDPOINT_URL_SQS, and the network on the way (a VPC needs an endpoint or NAT)`,
);
const BAD_CERTIFICATE = fatal(
  (at) =>
    `the TLS certificate of SQS at ${at} is not trusted: name the file of its CA in NODE_EXTRA_CA_CERTS`,
);

/** By the error's name, by the code that SQS's older protocol has for it, or by Node's code. */
const FAULTS = new Map([
  ['QueueDoesNotExist', NO_QUEUE],
  ['NonExistentQueue', NO_QUEUE],
  ['AWS.SimpleQueueService.NonExistentQueue', NO_QUEUE],
  ['InvalidAddress', BAD_ADDRESS],
  ['InvalidClientTokenId', BAD_CREDENTIALS],
  ['UnrecognizedClientException', BAD_CREDENTIALS],
  ['InvalidAccessKeyId', BAD_CREDENTIALS],
  ['InvalidSignatureException', BAD_CREDENTIALS],
  ['SignatureDoesNotMatch', BAD_CREDENTIALS],
  ['IncompleteSignature', BAD_CREDENTIALS],
  ['IncompleteSignatureException', BAD_CREDENTIALS],
  ['MissingAuthenticationToken', BAD_CREDENTIALS],
  ['MissingAuthenticationTokenException', BAD_CREDENTIALS],
  ['AuthFailure', BAD_CREDENTIALS],
  ['InvalidSecurity', BAD_CREDENTIALS],
  ['RequestExpired', BAD_CLOCK],
  ['RequestInTheFuture', BAD_CLOCK],
  ['RequestTimeTooSkewed', BAD_CLOCK],
  ['ExpiredToken', EXPIRED],
  ['ExpiredTokenException', EXPIRED],
  ['AccessDenied', NOT_ALLOWED],
  ['AccessDeniedException', NOT_ALLOWED],
  ['KmsAccessDenied', NOT_ALLOWED],
  ['KMS.AccessDeniedException', NOT_ALLOWED],
  ['KmsNotFound', NO_KMS_KEY],
  ['KMS.NotFoundException', NO_KMS_KEY],
  ['KmsDisabled', KMS_KEY_OFF],
  ['KMS.DisabledException', KMS_KEY_OFF],
  ['KmsInvalidState', KMS_KEY_OFF],
  ['KMS.InvalidStateException', KMS_KEY_OFF],
  ['KmsInvalidKeyUsage', KMS_USAGE],
  ['KMS.InvalidKeyUsageException', KMS_USAGE],
  ['KmsOptInRequired', KMS_OPT_IN],
  ['KMS.OptInRequired', KMS_OPT_IN],
  ['OptInRequired', KMS_OPT_IN],
  ['CredentialsProviderError', NO_CREDENTIALS],
  ['RequestThrottled', THROTTLED],
  ['ThrottlingException', THROTTLED],
  ['KmsThrottled', THROTTLED],
  [
    'OverLimit',
    passing((at) => `SQS at ${at} has too many messages in flight for this queue: wait, or delete some`),
  ],
  [
    'ECONNREFUSED',
    passing(
      (at) =>
        `nothing listens at ${at}, where the queue should be: start it, or check SQS_QUEUE_URL and AWS_ENDPOINT_URL_SQS`,
    ),
  ],
  [
    'ENOTFOUND',
    passing(
      (at) =>
        `the host of the queue, ${at}, has no address: check the region in SQS_QUEUE_URL, and AWS_ENDPOINT_URL_SQS`,
    ),
  ],
  [
    'EAI_AGAIN',
    passing(
      (at) =>
        `the name of the queue's host, ${at}, cannot be looked up just now: check the network and its DNS`,
    ),
  ],
  ['TimeoutError', NO_ANSWER],
  ['ETIMEDOUT', NO_ANSWER],
  ['EHOSTUNREACH', NO_ANSWER],
  ['ENETUNREACH', NO_ANSWER],
  ['ECONNRESET', passing((at) => `SQS at ${at} closed the connection, or something on the way cut it`)],
  ['SELF_SIGNED_CERT_IN_CHAIN', BAD_CERTIFICATE],
  ['DEPTH_ZERO_SELF_SIGNED_CERT', BAD_CERTIFICATE],
  ['UNABLE_TO_VERIFY_LEAF_SIGNATURE', BAD_CERTIFICATE],
  ['UNABLE_TO_GET_ISSUER_CERT_LOCALLY', BAD_CERTIFICATE],
  ['ERR_TLS_CERT_ALTNAME_INVALID', BAD_CERTIFICATE],
]);

/** AWS says so in the message of a signature's error; a machine's clock is mended in another way than credentials. */
const CLOCK = /Signature expired|Signature not yet current/;

/**
 * What to tell a person about an error of SQS, and whether it is one that no retry heals.
 *
 * @param error whatever a call of the SDK threw
 * @returns one line that says what is wrong with what and what to do; undefined for an error that is not known here
 */
export function queueFault(error: unknown, situation: QueueSituation = {}): Fault | undefined {
  if (!(error instanceof Error)) return undefined;
  const { at = 'the address in SQS_QUEUE_URL' } = situation;
  const { Code } = error as { Code?: unknown };
  const names = [error.name, Code, codeOf(error)].filter((name) => typeof name === 'string');
  let known = names.map((name) => FAULTS.get(name)).find((fault) => fault !== undefined);
  if (known === BAD_CREDENTIALS && CLOCK.test(error.message)) known = BAD_CLOCK;
  // The SDK has no class and no code for this one; the text is a fixed string of its own.
  if (error.message.startsWith('Region is missing')) known = NO_REGION;
  return known === undefined ? undefined : { text: known.text(at, situation), fatal: known.fatal };
}

/** The text of `queueFault` where no retry heals the error; else undefined. */
export function fatalQueueFault(error: unknown, situation?: QueueSituation): string | undefined {
  const fault = queueFault(error, situation);
  return fault?.fatal === true ? fault.text : undefined;
}
