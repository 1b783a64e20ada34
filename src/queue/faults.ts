const NO_QUEUE =
  'the queue that SQS_QUEUE_URL names does not exist: check its name, account and region, or create it';
const BAD_ADDRESS =
  'SQS does not take the address in SQS_QUEUE_URL: copy it from the queue, as https://sqs.REGION.amazonaws.com/ACCOUNT/NAME';
const BAD_CREDENTIALS =
  'SQS does not accept these AWS credentials: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN or the profile';
const EXPIRED = 'the AWS credentials have expired: get new ones, and start again';
const NOT_ALLOWED =
  'the AWS credentials may not use the queue: allow sqs:ReceiveMessage, sqs:DeleteMessage, ' +
  'sqs:ChangeMessageVisibility and sqs:GetQueueAttributes on it, and kms:Decrypt on its key if it has one';
const NO_CREDENTIALS =
  'there are no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or run with a role';
const NO_REGION = 'the AWS region is not known: set AWS_REGION';

/** By the error's name, or by the code that SQS's older protocol has for it. */
const FAULTS = new Map([
  ['QueueDoesNotExist', NO_QUEUE],
  ['NonExistentQueue', NO_QUEUE],
  ['AWS.SimpleQueueService.NonExistentQueue', NO_QUEUE],
  ['InvalidAddress', BAD_ADDRESS],
  ['InvalidClientTokenId', BAD_CREDENTIALS],
  ['UnrecognizedClientException', BAD_CREDENTIALS],
  ['InvalidAccessKeyId', BAD_CREDENTIALS],
  ['SignatureDoesNotMatch', BAD_CREDENTIALS],
  ['IncompleteSignature', BAD_CREDENTIALS],
  ['MissingAuthenticationToken', BAD_CREDENTIALS],
  ['InvalidSecurity', BAD_CREDENTIALS],
  ['ExpiredToken', EXPIRED],
  ['ExpiredTokenException', EXPIRED],
  ['AccessDenied', NOT_ALLOWED],
  ['AccessDeniedException', NOT_ALLOWED],
  ['KmsAccessDenied', NOT_ALLOWED],
  ['CredentialsProviderError', NO_CREDENTIALS],
]);

/**
 * What to tell a person about an error of SQS that no retry heals.
 *
 * @param error whatever a call of the SDK threw
 * @returns one line that says what is wrong and what to do; undefined for what may heal by itself: the network,
 *   throttling, SQS's own failures
 */
export function fatalQueueFault(error: unknown): string | undefined {
  if (!(error instanceof Error)) return undefined;
  const code = (error as { Code?: unknown }).Code;
  const fault = FAULTS.get(error.name) ?? (typeof code === 'string' ? FAULTS.get(code) : undefined);
  if (fault !== undefined) return fault;
  // The SDK has no class and no code for this one; the text is a fixed string of its own.
  return error.message.startsWith('Region is missing') ? NO_REGION : undefined;
}
