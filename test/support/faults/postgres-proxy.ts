import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

/** Messages of Postgres's protocol: a simple query, and Parse and Bind of a query with parameters. */
const QUERY = 0x51;
const PARSE = 0x50;
const BIND = 0x42;
const COMMIT = Buffer.from('commit\0');
/** ReadyForQuery outside a transaction: the server sends it after it has committed. */
const READY = Buffer.from([0x5a, 0, 0, 0, 5, 0x49]);

/**
 * Where to cut a connection: before the server receives the loader's COMMIT; or after the server has committed and
 * before the client receives the reply, for the loader's COMMIT, the worker's masking, and its request for a job.
 */
export type Cut = 'commit:before' | 'commit:after' | 'mask:after' | 'job:after';

/** The name of the prepared statement, or part of its text if it is not prepared. */
const GETS_JOB = [Buffer.from('get_job'), Buffer.from('for update\n    skip locked')];
/** CommandComplete of the UPDATE with which graphile-worker gets a job. */
const ONE_JOB = Buffer.from('UPDATE 1\0');

/** A TCP proxy before Postgres that can delay, stall and cut connections. */
export class PostgresProxy {
  readonly #server: Server;
  readonly #targetPort: number;
  readonly #sockets = new Set<Socket>();
  #stalled: Promise<void> | undefined;
  #cut: { at: Cut; done: () => void } | undefined;
  /** Delay of each piece of data, in milliseconds. */
  latencyMs = 0;
  /** Splits data into pieces of this many bytes and pauses between them; 0 passes data on unchanged. */
  pieceBytes = 0;
  /** Number of times that data was delayed or split. */
  slowed = 0;

  private constructor(targetPort: number) {
    this.#targetPort = targetPort;
    this.#server = createServer((socket) => this.#forward(socket));
  }

  static async start(targetPort: number): Promise<PostgresProxy> {
    const proxy = new PostgresProxy(targetPort);
    proxy.#server.listen(0, '127.0.0.1');
    await once(proxy.#server, 'listening');
    return proxy;
  }

  /** The same connection string, through the proxy. */
  through(connectionString: string): string {
    const url = new URL(connectionString);
    url.port = String((this.#server.address() as AddressInfo).port);
    return url.toString();
  }

  get connections(): number {
    return this.#sockets.size / 2;
  }

  /** Resets all connections (RST), and returns how many there were. */
  reset(): number {
    const broken = Math.ceil(this.connections);
    for (const socket of this.#sockets) socket.resetAndDestroy();
    return broken;
  }

  /** Cuts the next connection that reaches this point. Resolves when it is cut. */
  cutAt(at: Cut): Promise<void> {
    return new Promise((resolve) => {
      this.#cut = { at, done: resolve };
    });
  }

  /** Passes no more data, but keeps connections open, and accepts new ones. Returns a function that ends the stall. */
  stall(): () => void {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#stalled = promise;
    return () => {
      this.#stalled = undefined;
      resolve();
    };
  }

  async stop(): Promise<void> {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  #forward(client: Socket): void {
    const postgres = connect(this.#targetPort, '127.0.0.1');
    let pendingCut: { at: Cut; done: () => void } | undefined;
    const close = (): void => {
      client.destroy();
      postgres.destroy();
    };
    for (const socket of [client, postgres]) {
      socket.setNoDelay(true);
      this.#sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => {
        this.#sockets.delete(socket);
        close();
      });
    }
    const toServer = this.#channel(postgres);
    const toClient = this.#channel(client);
    client.on('data', (data) => {
      const cut = this.#cut;
      if (cut === undefined || !isAt(cut.at, data)) return toServer(data);
      this.#cut = undefined;
      if (cut.at === 'commit:before') {
        close();
        cut.done();
        return;
      }
      pendingCut = cut;
      toServer(data);
    });
    postgres.on('data', (data) => {
      if (pendingCut === undefined) return toClient(data);
      if (pendingCut.at === 'job:after' && !data.includes(ONE_JOB)) {
        // There was no job: wait for the next request.
        this.#cut = pendingCut;
        pendingCut = undefined;
        return toClient(data);
      }
      if (!data.subarray(-READY.length).equals(READY)) return;
      close();
      pendingCut.done();
    });
  }

  /** Passes data on in order. */
  #channel(target: Socket): (data: Buffer) => void {
    let previous: Promise<void> = Promise.resolve();
    const pass = async (data: Buffer): Promise<void> => {
      while (this.#stalled !== undefined) await this.#stalled;
      if (this.latencyMs > 0 || this.pieceBytes > 0) this.slowed += 1;
      if (this.latencyMs > 0) await sleep(this.latencyMs);
      const { pieceBytes } = this;
      if (pieceBytes === 0) return void target.write(data);
      for (let at = 0; at < data.length && !target.destroyed; at += pieceBytes) {
        target.write(data.subarray(at, at + pieceBytes));
        await sleep(2);
      }
    };
    return (data) => {
      previous = previous.then(() => pass(data));
    };
  }
}

/** The driver sends no request before it has the reply to the last one, so a request is at the start of the data. */
function isAt(cut: Cut, data: Buffer): boolean {
  if (cut === 'mask:after') return data[0] === PARSE && data.includes('masking.mask_batch(');
  if (cut === 'job:after')
    return (data[0] === PARSE || data[0] === BIND) && GETS_JOB.some((each) => data.includes(each));
  return data[0] === QUERY && data.subarray(5, 5 + COMMIT.length).equals(COMMIT);
}
