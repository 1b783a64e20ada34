import { SQSClient, type SQSClientConfig } from '@aws-sdk/client-sqs';
import { NodeHttpHandler } from '@smithy/node-http-handler';
import type { QueueSettings } from '../config.ts';

/** How long opening a connection may take, in milliseconds. */
const CONNECT_TIMEOUT_MS = 5_000;

/**
 * How long a request may take, in milliseconds: more than the longest poll (20 s). SQS may deliver messages to a poll
 * that was given up, and they stay hidden until their visibility timeout ends.
 */
const REQUEST_TIMEOUT_MS = 35_000;

/** Requests for one call, including the first. After that, the caller backs off. */
const MAX_ATTEMPTS = 3;

/**
 * The SDK warns on the console, with the queue's address, about things that are intended here (an address that is not
 * AWS's, all sockets busy). Failures reach the caller as errors.
 */
const SILENT = { trace() {}, debug() {}, info() {}, warn() {}, error() {} };

/**
 * A client for one queue. Long polls hold their sockets for up to 20 s, so use a second client for deleting and
 * sending. Call `destroy()` at the end. Otherwise its sockets keep the process alive for a while.
 *
 * @param queue where the queue is; the SDK finds region, endpoint and credentials if they are absent
 * @param options `maxSockets`: how many requests may be under way at the same time; others wait
 */
export function createQueueClient(queue: QueueSettings, options: { maxSockets: number }): SQSClient {
  const agent = { keepAlive: true, maxSockets: options.maxSockets };
  const config: SQSClientConfig = {
    // TLS protects the bodies, and a FIPS build of Node has no MD5.
    md5: false,
    maxAttempts: MAX_ATTEMPTS,
    retryMode: 'standard',
    logger: SILENT,
    requestHandler: new NodeHttpHandler({
      httpAgent: agent,
      httpsAgent: agent,
      connectionTimeout: CONNECT_TIMEOUT_MS,
      requestTimeout: REQUEST_TIMEOUT_MS,
      // Without this, the handler only warns about the timeout and keeps waiting.
      throwOnRequestTimeout: true,
      logger: SILENT,
    }),
  };
  if (queue.endpoint !== undefined) config.endpoint = queue.endpoint;
  if (queue.region !== undefined) config.region = queue.region;
  if (queue.credentials !== undefined) config.credentials = queue.credentials;
  const client = new SQSClient(config);
  // This middleware copies each request and answer for the logger, which costs some 7% of a request's CPU time.
  client.middlewareStack.remove('loggerMiddleware');
  return client;
}
