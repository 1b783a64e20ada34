import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

/** Frontend messages of Postgres's protocol: a simple query, and the Parse that begins a parametrised one. */
const QUERY = 0x51;
const PARSE = 0x50;
const BIND = 0x42;
const COMMIT = Buffer.from('commit\0');
/** ReadyForQuery outside a transaction: the last that a server sends when what it was asked has lasted. */
const READY = Buffer.from([0x5a, 0, 0, 0, 5, 0x49]);

/**
 * Where to cut a connection: the loader's COMMIT before the server sees it, or once it has done it and before the
 * client hears of it; or the worker's masking, or its taking of a job, which commit by themselves, once the server has
 * done it.
 */
export type Cut = 'commit:before' | 'commit:after' | 'mask:after' | 'job:after';

/** Name of the prepared statement, or part of the text of one that is not. */
const TAKES_JOB = [Buffer.from('get_job'), Buffer.from('for update\n    skip locked')];
/** CommandComplete of the update by which graphile-worker takes a job. */
const ONE_JOB = Buffer.from('UPDATE 1\0');

/** A way to Postgres that can be made bad. */
export class PostgresProxy {
  readonly #server: Server;
  readonly #targetPort: number;
  readonly #sockets = new Set<Socket>();
  #hole: Promise<void> | undefined;
  #cut: { at: Cut; done: () => void } | undefined;
  /** Added to each piece that passes, in milliseconds. */
  latencyMs = 0;
  /** Bytes a piece, some milliseconds between two; 0 for as they come. */
  dripBytes = 0;
  /** Pieces that were delayed or cut up since the start. */
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

  /** A connection string, by way of the proxy. */
  through(connectionString: string): string {
    const url = new URL(connectionString);
    url.port = String((this.#server.address() as AddressInfo).port);
    return url.toString();
  }

  get connections(): number {
    return this.#sockets.size / 2;
  }

  /** Breaks all connections with a RST; returns how many. */
  reset(): number {
    const broken = Math.ceil(this.connections);
    for (const socket of this.#sockets) socket.resetAndDestroy();
    return broken;
  }

  /** Cuts the next connection that comes to this; ends when it has. */
  cutAt(at: Cut): Promise<void> {
    return new Promise((resolve) => {
      this.#cut = { at, done: resolve };
    });
  }

  /** Nothing passes, and nobody is told; ends what it returns. New connections open, and hang. */
  swallow(): () => void {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#hole = promise;
    return () => {
      this.#hole = undefined;
      resolve();
    };
  }

  async stop(): Promise<void> {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  #forward(client: Socket): void {
    const postgres = connect(this.#targetPort, '127.0.0.1');
    let losing: { at: Cut; done: () => void } | undefined;
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
    const there = this.#line(postgres);
    const back = this.#line(client);
    client.on('data', (data) => {
      const cut = this.#cut;
      if (cut === undefined || !isAt(cut.at, data)) return there(data);
      this.#cut = undefined;
      if (cut.at === 'commit:before') {
        close();
        cut.done();
        return;
      }
      losing = cut;
      there(data);
    });
    postgres.on('data', (data) => {
      if (losing === undefined) return back(data);
      if (losing.at === 'job:after' && !data.includes(ONE_JOB)) {
        // There was no job to take: the next time, then.
        this.#cut = losing;
        losing = undefined;
        return back(data);
      }
      if (!data.subarray(-READY.length).equals(READY)) return;
      close();
      losing.done();
    });
  }

  /** Passes data on in order, however slowly each piece goes. */
  #line(target: Socket): (data: Buffer) => void {
    let before: Promise<void> = Promise.resolve();
    const pass = async (data: Buffer): Promise<void> => {
      while (this.#hole !== undefined) await this.#hole;
      if (this.latencyMs > 0 || this.dripBytes > 0) this.slowed += 1;
      if (this.latencyMs > 0) await sleep(this.latencyMs);
      const { dripBytes } = this;
      if (dripBytes === 0) return void target.write(data);
      for (let at = 0; at < data.length && !target.destroyed; at += dripBytes) {
        target.write(data.subarray(at, at + dripBytes));
        await sleep(2);
      }
    };
    return (data) => {
      before = before.then(() => pass(data));
    };
  }
}

/** The driver sends nothing before it has its answer, so a request begins where a piece of data begins. */
function isAt(cut: Cut, data: Buffer): boolean {
  if (cut === 'mask:after') return data[0] === PARSE && data.includes('masking.mask_batch(');
  if (cut === 'job:after')
    return (data[0] === PARSE || data[0] === BIND) && TAKES_JOB.some((each) => data.includes(each));
  return data[0] === QUERY && data.subarray(5, 5 + COMMIT.length).equals(COMMIT);
}
