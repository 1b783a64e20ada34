import { randomInt } from 'node:crypto';
import { createServer } from 'node:net';
import { FatalError } from '../src/errors.ts';

/**
 * Ports below each system's range for outgoing connections (32768 and up on Linux). In that range, a client that keeps
 * trying to connect to a server that was killed may get the server's port as its own, connect to itself, and keep it.
 */
const LOWEST = 15_000;
const HIGHEST = 32_000;
const ATTEMPTS = 100;

/**
 * A port of 127.0.0.1 on which nothing listens now.
 *
 * @param preferred the port of the last time, used again if it is free
 */
export async function freePort(preferred?: number): Promise<number> {
  if (preferred !== undefined && (await isFree(preferred))) return preferred;
  for (let attempt = 0; attempt < ATTEMPTS; attempt += 1) {
    const port = randomInt(LOWEST, HIGHEST);
    if (await isFree(port)) return port;
  }
  throw new FatalError(`no free port was found from ${LOWEST} to ${HIGHEST}`);
}

function isFree(port: number): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const server = createServer();
  server.once('error', () => resolve(false));
  server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  return promise;
}
