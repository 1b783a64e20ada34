import { codeOf, type Fault } from '../errors.ts';
import {
  byCode,
  faultAt,
  knownFaults,
  NO_ANSWER_CODES,
  UNTRUSTED_CERTIFICATE_CODES,
} from '../known-faults.ts';

/** What is known about a queue when an error occurs. */
export interface QueueSituation {
  /** Host and port of the endpoint. */
  at?: string | undefined;
  /** What the credentials must allow: `sqs:DeleteMessage on the queue`. */
  rights?: string | undefined;
}

const { fatal, passing } = knownFaults<QueueSituation>();

const BAD_CREDENTIALS = fatal(
  (at) =>
    `SQS at ${at} does not accept these AWS credentials: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN or the profile, and that AWS_REGION is the queue's`,
);
const BAD_CLOCK = fatal(
  (at) =>
    `SQS at ${at} says that this machine's clock is wrong by more than 5 minutes: set it (NTP), and start again`,
);
const NO_REGION = fatal(() => 'the AWS region is not known: set AWS_REGION');

/** By the error's name, by the code that SQS's older protocol has for it, or by Node's code. */
const FAULTS = byCode(
  [
    fatal(
      (at) =>
        `SQS at ${at} has no such queue: check name, account and region in SQS_QUEUE_URL, or create the queue`,
    ),
    'QueueDoesNotExist',
    'NonExistentQueue',
    'AWS.SimpleQueueService.NonExistentQueue',
  ],
  [
    fatal(
      () =>
        'SQS does not accept the address in SQS_QUEUE_URL: copy it from the queue, as https://sqs.REGION.amazonaws.com/ACCOUNT/NAME',
    ),
    'InvalidAddress',
  ],
  [
    BAD_CREDENTIALS,
    'InvalidClientTokenId',
    'UnrecognizedClientException',
    'InvalidAccessKeyId',
    'InvalidSignatureException',
    'SignatureDoesNotMatch',
    'IncompleteSignature',
    'IncompleteSignatureException',
    'MissingAuthenticationToken',
    'MissingAuthenticationTokenException',
    'AuthFailure',
    'InvalidSecurity',
  ],
  [BAD_CLOCK, 'RequestExpired', 'RequestInTheFuture', 'RequestTimeTooSkewed'],
  [
    fatal(() => 'the AWS credentials have expired: get new ones, and start again'),
    'ExpiredToken',
    'ExpiredTokenException',
  ],
  [
    fatal(
      (at, { rights = 'the sqs: actions that README.md lists for this command' }) =>
        `the AWS credentials may not use the queue at ${at}: allow ${rights}`,
    ),
    'AccessDenied',
    'AccessDeniedException',
    'KmsAccessDenied',
    'KMS.AccessDeniedException',
  ],
  [
    fatal(
      () =>
        'the KMS key that the queue is encrypted with does not exist: set another one for the queue (KmsMasterKeyId)',
    ),
    'KmsNotFound',
    'KMS.NotFoundException',
  ],
  [
    fatal(
      () =>
        'the KMS key that the queue is encrypted with is disabled or scheduled for deletion: enable it in KMS',
    ),
    'KmsDisabled',
    'KMS.DisabledException',
    'KmsInvalidState',
    'KMS.InvalidStateException',
  ],
  [
    fatal(() => "the queue's KMS key cannot encrypt: set a symmetric key for the queue (KmsMasterKeyId)"),
    'KmsInvalidKeyUsage',
    'KMS.InvalidKeyUsageException',
  ],
  [
    fatal(() => 'this AWS account may not use KMS: subscribe it to KMS, or encrypt the queue with SSE-SQS'),
    'KmsOptInRequired',
    'KMS.OptInRequired',
    'OptInRequired',
  ],
  [
    fatal(
      () =>
        'there are no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run with a role',
    ),
    'CredentialsProviderError',
  ],
  [
    passing((at) => `SQS at ${at} throttles the requests: wait`),
    'RequestThrottled',
    'ThrottlingException',
    'KmsThrottled',
  ],
  [
    passing((at) => `SQS at ${at} has too many messages in flight for this queue: wait, or delete some`),
    'OverLimit',
  ],
  [
    passing(
      (at) =>
        `nothing listens at ${at}, where the queue should be: start it, or check SQS_QUEUE_URL and AWS_ENDPOINT_URL_SQS`,
    ),
    'ECONNREFUSED',
  ],
  [
    passing(
      (at) =>
        `the host of the queue, ${at}, has no address: check the region in SQS_QUEUE_URL, and AWS_ENDPOINT_URL_SQS`,
    ),
    'ENOTFOUND',
  ],
  [
    passing(
      (at) => `the name of the queue's host, ${at}, cannot be looked up now: check the network and its DNS`,
    ),
    'EAI_AGAIN',
  ],
  [
    passing(
      (at) =>
        `SQS at ${at} does not answer: check SQS_QUEUE_URL, AWS_ENDPOINT_URL_SQS, and the network (a VPC needs an endpoint or NAT)`,
    ),
    'TimeoutError',
    ...NO_ANSWER_CODES,
  ],
  [passing((at) => `the connection to SQS at ${at} was lost`), 'ECONNRESET'],
  [
    fatal(
      (at) =>
        `the TLS certificate of SQS at ${at} is not trusted: set NODE_EXTRA_CA_CERTS to the file of its CA`,
    ),
    'ERR_TLS_CERT_ALTNAME_INVALID',
    ...UNTRUSTED_CERTIFICATE_CODES,
  ],
);

/** A wrong clock causes an error of the signature. Only AWS's message tells it from wrong credentials. */
const CLOCK = /Signature expired|Signature not yet current/;

/**
 * What to tell a person about an error of SQS, and whether no retry can fix it.
 *
 * @param error any error of the SDK
 * @returns one line that says what is wrong with what and what to do; undefined if the error is not known here
 */
export function queueFault(error: unknown, situation: QueueSituation = {}): Fault | undefined {
  if (!(error instanceof Error)) return undefined;
  const { at = 'the address in SQS_QUEUE_URL' } = situation;
  const { Code } = error as { Code?: unknown };
  const names = [error.name, Code, codeOf(error)].filter((name) => typeof name === 'string');
  let known = names.map((name) => FAULTS.get(name)).find((fault) => fault !== undefined);
  if (known === BAD_CREDENTIALS && CLOCK.test(error.message)) known = BAD_CLOCK;
  // The SDK has no class and no code for this error. The text is a fixed string of the SDK.
  if (error.message.startsWith('Region is missing')) known = NO_REGION;
  return faultAt(known, at, situation);
}
