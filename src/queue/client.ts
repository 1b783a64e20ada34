import { SQSClient, type SQSClientConfig } from '@aws-sdk/client-sqs';
import { NodeHttpHandler } from '@smithy/node-http-handler';
import type { QueueSettings } from '../config.ts';

/** How long opening a connection may take, in milliseconds. */
const CONNECT_TIMEOUT_MS = 5_000;

/**
 * How long a request may take, in milliseconds. Longer than the longest long poll (20 s) by a margin: a poll that
 * is given up early may still be handed messages, which nobody then sees until their visibility timeout ends.
 */
const REQUEST_TIMEOUT_MS = 35_000;

/** Requests made for one call, the first included. What still fails is for the caller's own back-off. */
const MAX_ATTEMPTS = 3;

/**
 * The SDK warns on the console, with the queue's address, about things that are as they should be here (an
 * address that is not AWS's, sockets all busy). What goes wrong reaches the caller as an error.
 */
const SILENT = { trace() {}, debug() {}, info() {}, warn() {}, error() {} };

/**
 * A client for one queue. Long polls hold their sockets for up to 20 s, so whoever also deletes or sends makes a
 * second client for it. Call `destroy()` when done, or its sockets keep the process alive for a while.
 *
 * @param queue where the queue is; region, endpoint and credentials fall back to what the SDK finds by itself
 * @param options `maxSockets`: how many requests may be under way at once; more than that queue up
 */
export function createQueueClient(queue: QueueSettings, options: { maxSockets: number }): SQSClient {
  const agent = { keepAlive: true, maxSockets: options.maxSockets };
  const config: SQSClientConfig = {
    // The bodies came over TLS; and on a FIPS build of Node there is no MD5 at all.
    md5: false,
    maxAttempts: MAX_ATTEMPTS,
    retryMode: 'standard',
    logger: SILENT,
    requestHandler: new NodeHttpHandler({
      httpAgent: agent,
      httpsAgent: agent,
      connectionTimeout: CONNECT_TIMEOUT_MS,
      requestTimeout: REQUEST_TIMEOUT_MS,
      // Without this the handler only warns of the timeout, and waits on.
      throwOnRequestTimeout: true,
      logger: SILENT,
    }),
  };
  if (queue.endpoint !== undefined) config.endpoint = queue.endpoint;
  if (queue.region !== undefined) config.region = queue.region;
  if (queue.credentials !== undefined) config.credentials = queue.credentials;
  const client = new SQSClient(config);
  // It copies each request and each answer for the log, whatever the logger does: some 7% of a request's CPU time.
  client.middlewareStack.remove('loggerMiddleware');
  return client;
}
