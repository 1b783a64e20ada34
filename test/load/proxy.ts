import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';

/** `commit` as a simple query of Postgres's protocol. */
const COMMIT = Buffer.from('commit\0');

/** A way to Postgres that a test can break. */
export class PostgresProxy {
  readonly #target: URL;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #port = 0;
  #isFrozen = false;
  /** Connections opened so far. */
  connections = 0;
  /** Commits whose answer is to be lost: Postgres does them, and the connection breaks. */
  losesAnswersToCommits = 0;

  private constructor(url: string) {
    this.#target = new URL(url);
    this.#server = createServer((socket) => this.#forward(socket));
  }

  static async start(url: string): Promise<PostgresProxy> {
    const proxy = new PostgresProxy(url);
    await proxy.restore();
    return proxy;
  }

  /** The database, through the proxy. */
  get url(): string {
    const url = new URL(this.#target);
    url.hostname = '127.0.0.1';
    url.port = String(this.#port);
    return url.toString();
  }

  /** Breaks all connections and refuses further ones. */
  async cut(): Promise<void> {
    const closed = new Promise((resolve) => {
      this.#server.close(resolve);
    });
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }

  /** Takes what is sent, and nothing ever comes of it. */
  freeze(): void {
    this.#isFrozen = true;
  }

  /** Lets connections in, on the port it had. */
  async restore(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#server.listen(this.#port, '127.0.0.1', resolve);
    });
    this.#port = (this.#server.address() as AddressInfo).port;
  }

  async stop(): Promise<void> {
    if (this.#server.listening) await this.cut();
  }

  #forward(client: Socket): void {
    this.connections += 1;
    const postgres = connect(Number(this.#target.port || 5432), this.#target.hostname);
    let losesAnswer = false;
    for (const socket of [client, postgres]) {
      this.#sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => {
        this.#sockets.delete(socket);
        client.destroy();
        postgres.destroy();
      });
    }
    client.on('data', (data) => {
      if (this.#isFrozen) return;
      if (this.losesAnswersToCommits > 0 && data.includes(COMMIT)) {
        this.losesAnswersToCommits -= 1;
        losesAnswer = true;
      }
      postgres.write(data);
    });
    postgres.on('data', (data) => {
      if (this.#isFrozen) return;
      if (losesAnswer) client.destroy();
      else client.write(data);
    });
  }
}
