/** `sqs.REGION.amazonaws.com`, also of China, FIPS, dual-stack (`api.aws`) and VPC endpoints. */
const AWS_HOST =
  /(?:^|\.)(?:sqs|sqs-fips)\.([a-z0-9-]+)\.(?:amazonaws\.com(?:\.cn)?|api\.aws|api\.amazonwebservices\.com\.cn|vpce\.amazonaws\.com(?:\.cn)?)$/;

/** The older form `REGION.queue.amazonaws.com`, without REGION for us-east-1. */
const OLD_AWS_HOST = /^(?:([a-z0-9-]+)\.)?queue\.amazonaws\.com(?:\.cn)?$/;

/** Emulators that imitate it. They accept any region. */
const EMULATOR_HOST = /^sqs\.([a-z0-9-]+)\.localhost(?:\.|$)/;

/**
 * The region in a queue's URL.
 *
 * @returns the region, if the host contains it; `isAws` is true if the host is AWS's
 */
export function regionOfQueue(queueUrl: string): { region: string | undefined; isAws: boolean } {
  const { hostname } = new URL(queueUrl);
  const old = OLD_AWS_HOST.exec(hostname);
  const aws = AWS_HOST.exec(hostname)?.[1] ?? (old === null ? undefined : (old[1] ?? 'us-east-1'));
  return aws === undefined
    ? { region: EMULATOR_HOST.exec(hostname)?.[1], isAws: false }
    : { region: aws, isAws: true };
}
